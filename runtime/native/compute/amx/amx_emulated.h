// AMX in plain C++, for tests: each instruction's effect as Intel's manual has it, and an end where that has a fault.
//
// LFM_AMX_EMULATED_FAULT in the environment makes a wrong processor of it, which the check at load must find.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "amx/amx_tile.h"

namespace lfm {
namespace {

struct EmulatedTiles {
  TileConfig config;
  uint8_t bytes[kTileCount][kTileRows][kTileRowBytes];
};

inline EmulatedTiles& Tiles() {
  static thread_local EmulatedTiles tiles = [] {
    EmulatedTiles initial = {};
    initial.config.palette = 0;
    return initial;
  }();
  return tiles;
}

inline void RequireTiles(bool holds, const char* rule) {
  if (holds) return;
  std::fprintf(stderr, "emulated AMX: fault: %s\n", rule);
  std::abort();
}

inline void TileConfigure(const TileConfig& config) {
  EmulatedTiles& tiles = Tiles();
  // Not a fault of the processor: who configures twice has not released.
  RequireTiles(tiles.config.palette == 0, "tiles are configured while they are in use: TileRelease is missing");
  RequireTiles(reinterpret_cast<uintptr_t>(&config) % 64 == 0, "a configuration across cache lines");
  RequireTiles(config.palette == 1, "palette 1 is the only one");
  RequireTiles(config.start_row == 0, "start_row is for interrupted loads");
  for (const uint8_t byte : config.reserved) RequireTiles(byte == 0, "reserved bytes are zero");
  for (int i = 0; i < 16; ++i) {
    const int rows = config.rows[i], row_bytes = config.row_bytes[i];
    RequireTiles(i < kTileCount || (rows == 0 && row_bytes == 0), "there are 8 tiles");
    RequireTiles(rows <= kTileRows && row_bytes <= kTileRowBytes, "a tile has at most 16 rows of 64 bytes");
    RequireTiles((rows == 0) == (row_bytes == 0), "a tile has rows and bytes, or neither");
  }
  tiles.config = config;
  std::memset(tiles.bytes, 0, sizeof(tiles.bytes));
}

inline void TileRelease() {
  EmulatedTiles& tiles = Tiles();
  tiles.config = {};
  tiles.config.palette = 0;
  std::memset(tiles.bytes, 0, sizeof(tiles.bytes));
}

// The shape of a tile that an instruction names.
struct TileShape {
  int rows;
  int row_bytes;
};

template <int kTile>
TileShape ShapeOf() {
  static_assert(kTile >= 0 && kTile < kTileCount, "there are 8 tiles");
  const TileConfig& config = Tiles().config;
  RequireTiles(config.palette == 1, "tiles are used that are not configured");
  RequireTiles(config.rows[kTile] != 0, "a tile is used that the configuration leaves out");
  return {config.rows[kTile], config.row_bytes[kTile]};
}

template <int kTile>
void TileZero() {
  ShapeOf<kTile>();
  std::memset(Tiles().bytes[kTile], 0, sizeof(Tiles().bytes[kTile]));
}

template <int kTile>
void TileLoad(const void* source, int64_t stride) {
  const TileShape shape = ShapeOf<kTile>();
  TileZero<kTile>();  // what lies beyond its rows and bytes becomes zero
  for (int row = 0; row < shape.rows; ++row) {
    std::memcpy(Tiles().bytes[kTile][row], static_cast<const uint8_t*>(source) + row * stride,
                static_cast<size_t>(shape.row_bytes));
  }
}

template <int kTile>
void TileStore(void* target, int64_t stride) {
  const TileShape shape = ShapeOf<kTile>();
  for (int row = 0; row < shape.rows; ++row) {
    std::memcpy(static_cast<uint8_t*>(target) + row * stride, Tiles().bytes[kTile][row],
                static_cast<size_t>(shape.row_bytes));
  }
}

template <int kSums, int kA, int kB>
void TileDot() {
  static_assert(kSums != kA && kSums != kB && kA != kB, "the processor refuses the same tile twice");
  static const bool wrong = std::getenv("LFM_AMX_EMULATED_FAULT") != nullptr;
  const TileShape sums = ShapeOf<kSums>(), a = ShapeOf<kA>(), b = ShapeOf<kB>();
  RequireTiles(sums.row_bytes % 4 == 0 && a.row_bytes % 4 == 0 && b.row_bytes % 4 == 0, "rows are whole dwords");
  RequireTiles(sums.rows == a.rows, "the sums have the rows of the first factor");
  RequireTiles(a.row_bytes / 4 == b.rows, "the second factor has a row for each dword of the first");
  RequireTiles(sums.row_bytes == b.row_bytes, "the sums have the columns of the second factor");
  EmulatedTiles& tiles = Tiles();
  for (int m = 0; m < sums.rows; ++m) {
    uint32_t row[kTileRowBytes / 4];
    std::memcpy(row, tiles.bytes[kSums][m], sizeof(row));
    for (int k = 0; k < b.rows; ++k) {
      for (int n = 0; n < sums.row_bytes / 4; ++n) {
        int32_t dot = wrong && m == 15 && n == 15 ? 1 : 0;
        for (int i = 0; i < 4; ++i) {
          const auto first = static_cast<int8_t>(tiles.bytes[kA][m][k * 4 + i]);
          const auto second = static_cast<int8_t>(tiles.bytes[kB][k][n * 4 + i]);
          dot += first * second;
        }
        row[n] += static_cast<uint32_t>(dot);  // int32 that wraps around
      }
    }
    std::memcpy(tiles.bytes[kSums][m], row, sizeof(row));
  }
}

}  // namespace
}  // namespace lfm
