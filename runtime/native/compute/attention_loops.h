// Attention of some queries over one chunk of columns, included once per instruction set.
//
// The including file defines, in an anonymous namespace of lfm:
//   struct Lanes   16 floats: static Zero(), Load(const float*), Broadcast(const float*), Fill(float),
//                  MultiplyAdd(a, b, c) = fma(a, b, c), Add, Subtract, Multiply, Larger(a, b) = a > b ? a : b,
//                  PowerOfTwo(x): the float of exponent field (bits of x + 127), ZeroBelow(x, limit, y) = x < limit ?
//                  0 : y; Store(float*), and for h in 8, 4, 2, 1: lane[l] = lane[l] + lane[l + h]: Sum(); with Larger:
//                  Largest();
//   kTileVectors   vectors of 16 outputs that a tile of kTileRows rows keeps in registers;
//   void Transpose16(const float* rows, int64_t stride, float* out, int64_t out_stride).
// No function of another translation unit is called here: a linker could take a copy of it made for another CPU.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "attention.h"
#include "attention_exp.h"

namespace lfm {
namespace {

constexpr int kLanes = 16;
constexpr int kTileRows = 4;

template <int kRows>
struct TileOf {
  static constexpr int value = kRows;
};

// c[r][16 v + l] (+)= sum over k of a[r][k] * b[k][16 v + l].
template <int kRows, int kVectors>
LFM_INLINE void MultiplyTile(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth,
                             float* c, int64_t c_stride, bool add) {
  Lanes sums[kRows][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = add ? Lanes::Load(c + r * c_stride + v * kLanes) : Lanes::Zero();
  }
  for (int64_t k = 0; k < depth; ++k, ++a, b += b_stride) {
    Lanes vectors[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) vectors[v] = Lanes::Load(b + v * kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Lanes factor = Lanes::Broadcast(a + r * a_stride);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = Lanes::MultiplyAdd(factor, vectors[v], sums[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v].Store(c + r * c_stride + v * kLanes);
  }
}

template <int kRows>
LFM_INLINE void MultiplyRows(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth,
                             float* c, int64_t c_stride, int64_t vectors, bool add) {
  int64_t v = 0;
  for (; v + kTileVectors <= vectors; v += kTileVectors) {
    MultiplyTile<kRows, kTileVectors>(a, a_stride, b + v * kLanes, b_stride, depth, c + v * kLanes, c_stride, add);
  }
  for (; v < vectors; ++v) {
    MultiplyTile<kRows, 1>(a, a_stride, b + v * kLanes, b_stride, depth, c + v * kLanes, c_stride, add);
  }
}

constexpr float kNoScore = -std::numeric_limits<float>::infinity();

LFM_INLINE Lanes ExpBelowZero(Lanes x) {
  using C = ExpConstants;
  const Lanes clamped = Lanes::Larger(Lanes::Fill(C::kLeast), x), round = Lanes::Fill(C::kRound);
  const Lanes shifted = Lanes::MultiplyAdd(clamped, Lanes::Fill(C::kLog2E), round);
  const Lanes n = Lanes::Subtract(shifted, round);
  const Lanes high = Lanes::MultiplyAdd(n, Lanes::Fill(C::kMinusLn2High), clamped);
  const Lanes r = Lanes::MultiplyAdd(n, Lanes::Fill(C::kMinusLn2Low), high);
  Lanes p = Lanes::Fill(C::kSeries[0]);
#pragma GCC unroll 8
  for (int i = 1; i < C::kTerms; ++i) p = Lanes::MultiplyAdd(p, r, Lanes::Fill(C::kSeries[i]));
  return Lanes::ZeroBelow(x, Lanes::Fill(C::kLeast), Lanes::Multiply(p, Lanes::PowerOfTwo(shifted)));
}

// Scores of a row's `count` columns to weights, in place; the row's maximum, sum and outputs follow.
LFM_INLINE void WeighRow(float* scores, int64_t count, int64_t head_dim, float* maximum, float* sum, float* outputs) {
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  for (int64_t j = count; j < padded; ++j) scores[j] = kNoScore;
  Lanes lanes = Lanes::Fill(*maximum);
  for (int64_t j = 0; j < padded; j += kLanes) lanes = Lanes::Larger(Lanes::Load(scores + j), lanes);
  const float largest = lanes.Largest(), base = largest == kNoScore ? 0.0f : largest;
  lanes = Lanes::Zero();
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Lanes weights = ExpBelowZero(Lanes::Subtract(Lanes::Load(scores + j), Lanes::Fill(base)));
    weights.Store(scores + j);
    lanes = Lanes::Add(lanes, weights);
  }
  if (largest != *maximum) {
    const float correction = ExpBelowZero(*maximum - base);
    *sum *= correction;
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      Lanes::Multiply(Lanes::Load(outputs + d), Lanes::Fill(correction)).Store(outputs + d);
    }
    *maximum = largest;
  }
  *sum += lanes.Sum();
}

// One block of columns for kRows rows that see `count` of them.
template <int kRows>
void AttendTile(const float* queries, const float* transposed_keys, const float* values, int64_t count,
                int64_t head_dim, float* maxima, float* sums, float* outputs) {
  alignas(64) float weights[kRows * kAttentionBlock];
  MultiplyRows<kRows>(queries, head_dim, transposed_keys, kAttentionBlock, head_dim, weights, kAttentionBlock,
                      (count + kLanes - 1) / kLanes, false);
  for (int r = 0; r < kRows; ++r) {
    WeighRow(weights + r * kAttentionBlock, count, head_dim, maxima + r, sums + r, outputs + r * head_dim);
  }
  MultiplyRows<kRows>(weights, kAttentionBlock, values, head_dim, count, outputs, head_dim, head_dim / kLanes, true);
}

// keys [count, head_dim] → [head_dim, kAttentionBlock]; up to a multiple of 16 columns, those that are missing are 0.
inline void TransposeKeys(const float* keys, int64_t count, int64_t head_dim, float* out) {
  for (int64_t j = 0; j < count; j += kLanes) {
    const int64_t left = count - j;
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      const float* rows = keys + j * head_dim + d;
      float* target = out + d * kAttentionBlock + j;
      if (left >= kLanes) {
        Transpose16(rows, head_dim, target, kAttentionBlock);
        continue;
      }
      alignas(64) float copy[kLanes * kLanes] = {};
      for (int64_t i = 0; i < left; ++i) std::memcpy(copy + i * kLanes, rows + i * head_dim, kLanes * sizeof(float));
      Transpose16(copy, kLanes, target, kAttentionBlock);
    }
  }
}

// Columns up to `end` that the row sees.
inline int64_t ColumnsSeen(const AttentionRows& all, int64_t row, int64_t end) {
  const int64_t seen = all.past + (all.first_row + row) / all.group + 1;
  return seen < end ? seen : end;
}

void Attend(const AttentionRows& all, int64_t begin, int64_t end, const AttentionPartial& partial) {
  alignas(64) float transposed[kMaxHeadDim * kAttentionBlock];
  const int64_t head_dim = all.head_dim;
  for (int64_t r = 0; r < all.rows; ++r) {
    partial.maxima[r] = kNoScore;
    partial.sums[r] = 0;
  }
  std::memset(partial.outputs, 0, static_cast<size_t>(all.rows * head_dim) * sizeof(float));
  end = ColumnsSeen(all, all.rows - 1, end);
  for (int64_t block = begin; block < end; block += kAttentionBlock) {
    const int64_t block_end = block + kAttentionBlock < end ? block + kAttentionBlock : end;
    const float* values = all.values + block * head_dim;
    TransposeKeys(all.keys + block * head_dim, block_end - block, head_dim, transposed);
    // Rows that see the same columns go together; of the others none meets a column that it must not see.
    for (int64_t row = 0, next; row < all.rows; row = next) {
      const int64_t seen = ColumnsSeen(all, row, block_end), count = seen - block;
      const bool whole = seen == block_end;
      next = whole ? all.rows : row + all.group - (all.first_row + row) % all.group;
      if (next > all.rows) next = all.rows;
      if (count <= 0) continue;
      const auto attend = [&](auto tile, int64_t r) {
        AttendTile<decltype(tile)::value>(all.queries + r * head_dim, transposed, values, count, head_dim,
                                          partial.maxima + r, partial.sums + r, partial.outputs + r * head_dim);
      };
      int64_t r = row;
      for (; r + kTileRows <= next; r += kTileRows) attend(TileOf<kTileRows>{}, r);
      if (r + 2 <= next) attend(TileOf<2>{}, r), r += 2;
      if (r < next) attend(TileOf<1>{}, r);
    }
  }
}

}  // namespace
}  // namespace lfm
