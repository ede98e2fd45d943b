// The tile registers of AMX and the five things that are done with them; the same for a program without AMX.
//
// The instructions are assembler statements, not intrinsics: GCC's intrinsics tell the compiler neither that a tile
// load reads memory (it may move the stores that fill it behind the load) nor that ldtilecfg reads 64 bytes, and the
// statements need no -mamx flags, which compilers before GCC 11 refuse.
//
// With LFM_AMX_EMULATED the same names are plain C++ (amx_emulated.h), so that the kernels are compiled and tested on
// machines without AMX.
#pragma once

#include <cstdint>

#include "x86/rows.h"

#if defined(LFM_AMX_EMULATED)
#define LFM_AMX_TILES 1
#elif defined(__linux__) && !defined(__ANDROID__) && defined(__GNUC__) && (defined(__clang__) || __GNUC__ >= 11)
// Linux alone: there the permission is asked for. Android's sandbox ends a process that asks for what it does not know;
// on Windows it is not certain that every version saves the tiles.
#define LFM_AMX_TILES 1
#else
#define LFM_AMX_TILES 0
#endif

#if LFM_AMX_TILES
namespace lfm {
namespace {

constexpr int kTileCount = 8;
constexpr int kTileRows = 16;
constexpr int kTileRowBytes = 64;

// What ldtilecfg reads: how many rows each tile has, and how many bytes each row.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64, "the size is the processor's");

}  // namespace
}  // namespace lfm

#if defined(LFM_AMX_EMULATED)
#include "amx/amx_emulated.h"
#else
namespace lfm {
namespace {

// Takes the tiles of this thread, all zero. They keep their shapes until TileRelease.
LFM_INLINE void TileConfigure(const TileConfig& config) { __asm__ volatile("ldtilecfg %0" : : "m"(config)); }

// Gives them back: a thread that keeps them makes every switch to another thread save 8 KiB.
LFM_INLINE void TileRelease() { __asm__ volatile("tilerelease" : : : "memory"); }

template <int kTile>
LFM_INLINE void TileZero() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

// Row i of the tile from source + i * stride.
template <int kTile>
LFM_INLINE void TileLoad(const void* source, int64_t stride) {
  __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(kTile), "r"(source), "r"(stride) : "memory");
}

template <int kTile>
LFM_INLINE void TileStore(void* target, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(kTile), "r"(target), "r"(stride) : "memory");
}

// sums[m][n] += the sum over k of a[m][k] * b[k / 4][4 * n + k % 4]: int8 products, int32 sums.
template <int kSums, int kA, int kB>
LFM_INLINE void TileDot() {
  static_assert(kSums != kA && kSums != kB && kA != kB, "the processor refuses the same tile twice");
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB));
}

}  // namespace
}  // namespace lfm
#endif
#endif  // LFM_AMX_TILES
