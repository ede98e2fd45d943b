// The kernel table of an ARM instruction set, made of its dot products `Dot`.
//
// Dot has, for the vector order:
//   Sums8(start, w, a)  start[i] + sum of the products of bytes 4i..4i+3 of both vectors of w and a (codes 0..15);
//   Sums4(start, w, a)  the same of one vector (codes -128..127);
// and for the tile order, whose products of 4 rows and 4 tokens it may arrange in four vectors as it likes:
//   StoreTilePart(target, t, codes)     puts a part of token t into the 128 bytes of its quad;
//   TileWeights ArrangeRows(codes)      a part of four rows, ready for all tokens;
//   AddTilePart(weights, a, sums)       adds the products of one part;
//   SpreadRows<i>, SpreadTokens<i>      four values, one per row or token, to where vector i has that row or token;
//   RowsOfTokens(totals, outputs)       outputs[t] = the four rows of token t.
#pragma once

#include "arm/neon_tile.h"
#include "arm/neon_vector.h"

namespace lfm {

// The float path is the same for all: kernels_neon.cc has it (neon_float.h).
void NeonMultiplyFloats(const WeightRows& weights, int64_t row_begin, int64_t row_end, const float* packed,
                        int64_t tokens, float* y, int64_t y_stride);

namespace {

template <typename Dot>
void Multiply(const WeightRows& weights, ActivationType activation, int64_t row_begin, int64_t row_end,
              const void* packed, int64_t tokens, float* y, int64_t y_stride) {
  const uint8_t* bytes = static_cast<const uint8_t*>(packed);
  if (!QuantizesActivations(weights, activation)) {
    NeonMultiplyFloats(weights, row_begin, row_end, static_cast<const float*>(packed), tokens, y, y_stride);
    return;
  }
  VisitFormat(weights, [&](auto format) {
    using Format = decltype(format);
    if (tokens < kTileTokens) {
      MultiplyVectors<Dot, Format>(weights, row_begin, row_end, bytes, tokens, y, y_stride);
    } else {
      MultiplyTiles<Dot, Format>(weights, row_begin, row_end, bytes, tokens, y, y_stride);
    }
  });
}

template <typename Dot>
constexpr KernelTable MakeTable(const char* name) {
  return {name, PackedBytes, Pack<Dot>, Multiply<Dot>};
}

// The tile arrangement of instruction sets that compute row by row: sums[t] holds the four rows of token t.
struct TokenMajorTile {
  static LFM_INLINE void StoreTilePart(int8_t* target, int t, const PartCodes& codes) {
    vst1q_s8(target + t * kPart, codes.first);
    vst1q_s8(target + t * kPart + 16, codes.second);
  }
  template <int kToken>
  static LFM_INLINE float32x4_t SpreadRows(float32x4_t values) {
    return values;
  }
  template <int kToken>
  static LFM_INLINE float32x4_t SpreadTokens(float32x4_t values) {
    return vdupq_laneq_f32(values, kToken);
  }
  static LFM_INLINE void RowsOfTokens(const float32x4_t (&totals)[kQuad], float32x4_t (&outputs)[kQuad]) {
    ForEach<kQuad>([&](auto t) LFM_INLINE_LAMBDA { outputs[t] = totals[t]; });
  }
};

}  // namespace
}  // namespace lfm
