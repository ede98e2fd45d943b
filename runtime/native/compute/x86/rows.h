// Rows of a weight matrix as the x86 kernels walk them, and the fixed sum tree that ends every row.
#pragma once

// GCC's own AVX-512 intrinsics set off its warnings about registers that they leave undefined on purpose.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <cstdint>
#include <cstring>

#include "kernel_table.h"

#define LFM_INLINE inline __attribute__((always_inline))

// Everything in the x86 headers has internal linkage: each ISA file compiles them with its own flags, and a linker
// that merged the copies could put AVX-512 code into the AVX2 table.
namespace lfm {
namespace {

// Compile-time form of a block format, so that the inner loops have no branches.
template <int kBitsValue, int kBlockValue, bool kHalfScalesValue, bool kZeroPointsValue>
struct BlockFormat {
  static constexpr int kBits = kBitsValue;
  static constexpr int kBlock = kBlockValue;
  static constexpr bool kHalfScales = kHalfScalesValue;
  static constexpr bool kZeroPoints = kZeroPointsValue;
  static constexpr int kGroup = kBits == 4 ? 128 : 64;  // elements of one group of 16 lanes
  static constexpr int kGroupBytes = 64;
  static constexpr int kGroupBlocks = kGroup >= kBlock ? kGroup / kBlock : 1;  // blocks that a group touches
  static constexpr int kBlockGroups = kGroup >= kBlock ? 1 : kBlock / kGroup;  // groups that share a block
  static constexpr int kScaleBytes = kHalfScales ? 2 : 4;
  static constexpr int kGroupScaleBytes = kGroupBlocks * kScaleBytes / kBlockGroups;
};

// Calls visitor(BlockFormat<...>{}) with the format of `weights`.
template <int kBits, int kBlock, typename Visitor>
LFM_INLINE void VisitScales(const WeightRows& weights, Visitor&& visitor) {
  if (weights.scales_are_float16) {
    if (weights.zero_points != nullptr) return visitor(BlockFormat<kBits, kBlock, true, true>{});
    return visitor(BlockFormat<kBits, kBlock, true, false>{});
  }
  if (weights.zero_points != nullptr) return visitor(BlockFormat<kBits, kBlock, false, true>{});
  return visitor(BlockFormat<kBits, kBlock, false, false>{});
}

template <int kBits, typename Visitor>
LFM_INLINE void VisitBlocks(const WeightRows& weights, Visitor&& visitor) {
  if (weights.block_size == 32) return VisitScales<kBits, 32>(weights, visitor);
  if (weights.block_size == 64) return VisitScales<kBits, 64>(weights, visitor);
  return VisitScales<kBits, 128>(weights, visitor);
}

template <typename Visitor>
LFM_INLINE void VisitFormat(const WeightRows& weights, Visitor&& visitor) {
  if (weights.type == WeightType::kInt4) return VisitBlocks<4>(weights, visitor);
  return VisitBlocks<8>(weights, visitor);
}

// One row: its codes, scales and packed zero points.
struct RowPointers {
  const uint8_t* codes;
  const uint8_t* scales;
  const uint8_t* zero_points;
};

LFM_INLINE RowPointers RowAt(const WeightRows& weights, int64_t row) {
  const int64_t scale_bytes = weights.blocks * (weights.scales_are_float16 ? 2 : 4);
  return {static_cast<const uint8_t*>(weights.data) + row * weights.row_bytes,
          static_cast<const uint8_t*>(weights.scales) + row * scale_bytes,
          weights.zero_points == nullptr ? nullptr : weights.zero_points + row * weights.zero_point_row_bytes};
}

// Last, partial group of a row, copied to where whole vectors can be read; what is missing is zero.
struct GroupCopy {
  uint8_t codes[64];
  uint8_t scales[16];
  uint8_t zero_points[4];
};

template <typename Format>
LFM_INLINE RowPointers CopyPartialGroup(const RowPointers& row, int64_t group, int64_t blocks, GroupCopy* copy) {
  constexpr int kBlockBytes = Format::kBlock * Format::kBits / 8;
  const int64_t first = group * Format::kGroupBlocks;
  const size_t left = static_cast<size_t>(blocks - first);
  std::memset(copy, 0, sizeof(*copy));
  std::memcpy(copy->codes, row.codes + first * kBlockBytes, left * kBlockBytes);
  std::memcpy(copy->scales, row.scales + first * Format::kScaleBytes, left * Format::kScaleBytes);
  if (Format::kZeroPoints) {
    std::memcpy(copy->zero_points, row.zero_points + first * Format::kBits / 8, (left * Format::kBits + 7) / 8);
  }
  return {copy->codes, copy->scales, copy->zero_points};
}

// Memory answers fastest when it is asked for in the order of its addresses. Four rows are computed side by side, so
// while they are, the lines of the rows that follow are fetched in that order: as many bytes per step as are used,
// this far ahead (or four rows, whichever is more).
constexpr int64_t kPrefetchBytes = 8192;

LFM_INLINE void Prefetch(const uint8_t* address) { _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T0); }

template <int kBytes>
LFM_INLINE void PrefetchRange(const uint8_t* address) {
#pragma GCC unroll 4
  for (int i = 0; i < kBytes; i += 64) Prefetch(address + i);
}

LFM_INLINE int64_t PrefetchDistance(const WeightRows& weights) {
  return 4 * weights.row_bytes > kPrefetchBytes ? 4 * weights.row_bytes : kPrefetchBytes;
}

template <typename Integer>
LFM_INLINE Integer LoadUnaligned(const uint8_t* source) {
  Integer value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

// Zero point of one block, from the packed bytes of its row.
template <int kBits>
LFM_INLINE int ZeroPointAt(const uint8_t* zero_points, int64_t block) {
  if (zero_points == nullptr) return 1 << (kBits - 1);
  if (kBits == 8) return zero_points[block];
  return (zero_points[block >> 1] >> ((block & 1) * 4)) & 15;
}

LFM_INLINE float ScaleAt(const WeightRows& weights, const uint8_t* scales, int64_t block) {
  if (weights.scales_are_float16) return _cvtsh_ss(LoadUnaligned<uint16_t>(scales + block * 2));
  return LoadUnaligned<float>(scales + block * 4);
}

// Last half of the sum tree for four outputs at once: lanes 0..3 of each become its total, in order a, b, c, d.
LFM_INLINE __m128 SumLanes4(__m128 a, __m128 b, __m128 c, __m128 d) {
  const __m128 ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
  const __m128 cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
  return _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd));
}

// The tree from 16 lanes in two registers down to 4: steps h = 8 and h = 4.
LFM_INLINE __m128 FoldTo4(__m256 low, __m256 high) {
  const __m256 eight = _mm256_add_ps(low, high);
  return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
}

#if defined(__AVX512DQ__)
LFM_INLINE __m128 FoldTo4(__m512 sums) {
  return FoldTo4(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps(sums, 1));
}
#endif

// Stores the first `count` of four consecutive outputs.
LFM_INLINE void StoreOutputs(float* y, __m128 outputs, int64_t count) {
  if (count >= 4) {
    _mm_storeu_ps(y, outputs);
    return;
  }
  float lanes[4];
  _mm_storeu_ps(lanes, outputs);
  for (int64_t i = 0; i < count; ++i) y[i] = lanes[i];
}

// Sizes of the tiles into which `tokens` are cut: as equal as possible and at most kMaxTile, so that no tile is thin.
template <int kMaxTile>
struct TokenTiles {
  int64_t tokens;
  int64_t count;
  LFM_INLINE explicit TokenTiles(int64_t total) : tokens(total), count((total + kMaxTile - 1) / kMaxTile) {}
  LFM_INLINE int64_t Begin(int64_t tile) const {
    const int64_t wider = tokens % count;
    return tile * (tokens / count) + (tile < wider ? tile : wider);
  }
  LFM_INLINE int Size(int64_t tile) const { return static_cast<int>(Begin(tile + 1) - Begin(tile)); }
};

}  // namespace
}  // namespace lfm
