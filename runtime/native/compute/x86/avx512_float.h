// Float activations with AVX-512: one register of 16 lanes per output, weights of any type widened as they are read.
#pragma once

#include "x86/activations.h"

namespace lfm {
namespace {

constexpr int kFloatTokens512 = 4;
constexpr int kFloatRows512 = 4;

// What turns a block's codes into floats: int4 looks each code up in a table of its 16 values.
struct BlockValues512 {
  __m512 table_or_scale;
  __m512i zero_point;
};

template <WeightType kType>
LFM_INLINE BlockValues512 ValuesOfBlock512(const WeightRows& weights, const RowPointers& row, int64_t block) {
  BlockValues512 values = {_mm512_setzero_ps(), _mm512_setzero_si512()};
  if constexpr (kType == WeightType::kInt8 || kType == WeightType::kInt4) {
    constexpr int kBits = kType == WeightType::kInt4 ? 4 : 8;
    values.table_or_scale = _mm512_set1_ps(ScaleAt(weights, row.scales, block));
    values.zero_point = _mm512_set1_epi32(ZeroPointAt<kBits>(row.zero_points, block));
    if constexpr (kBits == 4) {
      const __m512i codes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      values.table_or_scale =
          _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(codes, values.zero_point)), values.table_or_scale);
    }
  }
  return values;
}

// Elements [k, k + 16) of a row; `mask` tells which exist where kTail.
template <WeightType kType, bool kTail>
LFM_INLINE __m512 Weights16(const uint8_t* codes, int64_t k, __mmask16 mask, const BlockValues512& values) {
  if constexpr (kType == WeightType::kFloat32) {
    return kTail ? _mm512_maskz_loadu_ps(mask, codes + k * 4) : _mm512_loadu_ps(codes + k * 4);
  } else if constexpr (kType == WeightType::kFloat16) {
    const __m256i* source = reinterpret_cast<const __m256i*>(codes + k * 2);
    return _mm512_cvtph_ps(kTail ? _mm256_maskz_loadu_epi16(mask, source) : _mm256_loadu_si256(source));
  } else if constexpr (kType == WeightType::kInt8) {
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + k)));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(wide, values.zero_point)), values.table_or_scale);
  } else {
    const __m512i dwords = _mm512_castsi128_si512(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + k / 2)));
    const __m512i spread =
        _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1), dwords);
    const __m512i shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(spread, shifts), values.table_or_scale);
  }
}

template <WeightType kType, int kTokens, bool kTail>
LFM_INLINE void Add16Columns512(const RowPointers (&rows)[kFloatRows512], int64_t k, __mmask16 mask,
                                const BlockValues512 (&values)[kFloatRows512], const float* x, int64_t x_stride,
                                __m512 (&sums)[kTokens][kFloatRows512]) {
  __m512 weights[kFloatRows512];
#pragma GCC unroll 4
  for (int r = 0; r < kFloatRows512; ++r) weights[r] = Weights16<kType, kTail>(rows[r].codes, k, mask, values[r]);
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    const __m512 token = _mm512_loadu_ps(x + t * x_stride + k);
#pragma GCC unroll 4
    for (int r = 0; r < kFloatRows512; ++r) {
      sums[t][r] = kTail ? _mm512_mask3_fmadd_ps(weights[r], token, sums[t][r], mask)
                         : _mm512_fmadd_ps(weights[r], token, sums[t][r]);
    }
  }
}

template <WeightType kType, int kTokens>
void FloatTile512(const WeightRows& weights, int64_t row, int64_t count, const float* x, float* y, int64_t y_stride) {
  const int64_t x_stride = PaddedColumns(weights);
  constexpr bool kInteger = kType == WeightType::kInt8 || kType == WeightType::kInt4;
  constexpr int kStepBytes = kFloatRows512 * 16 * (kType == WeightType::kInt4 ? 4 : 8) / 8;  // of all rows' codes
  const int64_t block_columns = kInteger ? weights.block_size : weights.columns;
  RowPointers rows[kFloatRows512];
  for (int r = 0; r < kFloatRows512; ++r) rows[r] = RowAt(weights, row + (r < count ? r : 0));
  __m512 sums[kTokens][kFloatRows512];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < kFloatRows512; ++r) sums[t][r] = _mm512_setzero_ps();
  }
  const uint8_t* next_codes = rows[0].codes + PrefetchDistance(weights);
  int64_t k = 0;
  for (int64_t block = 0; k < weights.columns; ++block) {
    BlockValues512 values[kFloatRows512];
#pragma GCC unroll 4
    for (int r = 0; r < kFloatRows512; ++r) values[r] = ValuesOfBlock512<kType>(weights, rows[r], block);
    const int64_t left = weights.columns - k;
    const int64_t block_end = k + (left < block_columns ? left : block_columns);
    for (; k + 16 <= block_end; k += 16) {
      if (kInteger && kTokens == 1) PrefetchRange<kStepBytes>(next_codes + k / 16 * kStepBytes);
      Add16Columns512<kType, kTokens, false>(rows, k, 0xffff, values, x, x_stride, sums);
    }
    if (k < block_end) {
      const __mmask16 mask = static_cast<__mmask16>((1u << (block_end - k)) - 1);
      Add16Columns512<kType, kTokens, true>(rows, k, mask, values, x, x_stride, sums);
      k = block_end;
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    StoreOutputs(y + t * y_stride,
                 SumLanes4(FoldTo4(sums[t][0]), FoldTo4(sums[t][1]), FoldTo4(sums[t][2]), FoldTo4(sums[t][3])), count);
  }
}

template <WeightType kType>
void MultiplyFloats512(const WeightRows& weights, int64_t row_begin, int64_t row_end, const float* packed,
                       int64_t tokens, float* y, int64_t y_stride) {
  const TokenTiles<kFloatTokens512> tiles(tokens);
  const int64_t band = CachedRows(weights);
  for (int64_t begin = row_begin; begin < row_end; begin += band) {
    const int64_t end = row_end - begin < band ? row_end : begin + band;
    for (int64_t i = 0; i < tiles.count; ++i) {
      const float* x = packed + tiles.Begin(i) * PaddedColumns(weights);
      float* target = y + tiles.Begin(i) * y_stride;
      const int tile = tiles.Size(i);
      const auto multiply = tile == 1   ? FloatTile512<kType, 1>
                            : tile == 2 ? FloatTile512<kType, 2>
                            : tile == 3 ? FloatTile512<kType, 3>
                                        : FloatTile512<kType, 4>;
      for (int64_t row = begin; row < end; row += kFloatRows512) {
        multiply(weights, row, end - row, x, target + (row - row_begin), y_stride);
      }
    }
  }
}

}  // namespace
}  // namespace lfm
