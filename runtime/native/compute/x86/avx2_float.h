// Float activations with AVX2: two registers of 8 lanes per output, weights of any type widened as they are read.
#pragma once

#include "x86/avx2_vector.h"

namespace lfm {
namespace {

constexpr int kFloatTokens256 = 2;

struct Halves256 {
  __m256 low;   // lanes 0..7
  __m256 high;  // lanes 8..15
};

// What turns a block's codes into floats.
struct BlockValues256 {
  __m256 scale;
  __m256i zero_point;
};

template <WeightType kType>
LFM_INLINE BlockValues256 ValuesOfBlock256(const WeightRows& weights, const RowPointers& row, int64_t block) {
  if constexpr (kType == WeightType::kFloat32 || kType == WeightType::kFloat16) {
    return {_mm256_setzero_ps(), _mm256_setzero_si256()};
  } else {
    constexpr int kBits = kType == WeightType::kInt4 ? 4 : 8;
    return {_mm256_set1_ps(ScaleAt(weights, row.scales, block)),
            _mm256_set1_epi32(ZeroPointAt<kBits>(row.zero_points, block))};
  }
}

LFM_INLINE __m256 Dequantize8(__m128i codes, const BlockValues256& values) {
  const __m256i differences = _mm256_sub_epi32(_mm256_cvtepu8_epi32(codes), values.zero_point);
  return _mm256_mul_ps(_mm256_cvtepi32_ps(differences), values.scale);
}

// Elements [k, k + 16) of a row.
template <WeightType kType>
LFM_INLINE Halves256 Weights16(const uint8_t* codes, int64_t k, const BlockValues256& values) {
  if constexpr (kType == WeightType::kFloat32) {
    const float* source = reinterpret_cast<const float*>(codes + k * 4);
    return {_mm256_loadu_ps(source), _mm256_loadu_ps(source + 8)};
  } else if constexpr (kType == WeightType::kFloat16) {
    const __m128i* source = reinterpret_cast<const __m128i*>(codes + k * 2);
    return {_mm256_cvtph_ps(_mm_loadu_si128(source)), _mm256_cvtph_ps(_mm_loadu_si128(source + 1))};
  } else {
    __m128i bytes;
    if constexpr (kType == WeightType::kInt8) {
      bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + k));
    } else {
      const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + k / 2));
      const __m128i pairs = _mm_unpacklo_epi8(packed, _mm_srli_epi16(packed, 4));
      bytes = _mm_and_si128(pairs, _mm_set1_epi8(15));
    }
    return {Dequantize8(bytes, values), Dequantize8(_mm_srli_si128(bytes, 8), values)};
  }
}

// The last, partial 16 elements of a row: codes are padded to the end of their block, floats are copied.
template <WeightType kType>
LFM_INLINE Halves256 LastWeights(const uint8_t* codes, int64_t k, int64_t count, const BlockValues256& values) {
  constexpr int64_t kElementBytes = kType == WeightType::kFloat32 ? 4 : kType == WeightType::kFloat16 ? 2 : 0;
  if constexpr (kElementBytes != 0) {
    uint8_t copy[64] = {};
    std::memcpy(copy, codes + k * kElementBytes, static_cast<size_t>(count * kElementBytes));
    return Weights16<kType>(copy, 0, values);
  }
  return Weights16<kType>(codes, k, values);
}

template <int kRows, int kTokens, bool kTail>
LFM_INLINE void Add16Columns256(const Halves256 (&weights)[kRows], const float* x, int64_t x_stride,
                                const int32_t* mask, __m256 (&sums)[kTokens][kRows][2]) {
#pragma GCC unroll 2
  for (int t = 0; t < kTokens; ++t) {
    const __m256 low = _mm256_loadu_ps(x + t * x_stride);
    const __m256 high = _mm256_loadu_ps(x + t * x_stride + 8);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m256 new_low = _mm256_fmadd_ps(weights[r].low, low, sums[t][r][0]);
      const __m256 new_high = _mm256_fmadd_ps(weights[r].high, high, sums[t][r][1]);
      if (kTail) {  // lanes without an element keep their sum
        const float* lanes = reinterpret_cast<const float*>(mask);
        sums[t][r][0] = _mm256_blendv_ps(sums[t][r][0], new_low, _mm256_loadu_ps(lanes));
        sums[t][r][1] = _mm256_blendv_ps(sums[t][r][1], new_high, _mm256_loadu_ps(lanes + 8));
      } else {
        sums[t][r][0] = new_low;
        sums[t][r][1] = new_high;
      }
    }
  }
}

template <WeightType kType, int kRows, int kTokens>
void FloatTile256(const WeightRows& weights, int64_t row, int64_t count, const float* x, float* y, int64_t y_stride) {
  constexpr bool kInteger = kType == WeightType::kInt8 || kType == WeightType::kInt4;
  constexpr int kStepBytes = kRows * 16 * (kType == WeightType::kInt4 ? 4 : 8) / 8;  // of all rows' codes
  const int64_t x_stride = PaddedColumns(weights);
  const int64_t block_columns = kInteger ? weights.block_size : weights.columns;
  RowPointers rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r] = RowAt(weights, row + (r < count ? r : 0));
  __m256 sums[kTokens][kRows][2];
#pragma GCC unroll 2
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) sums[t][r][0] = sums[t][r][1] = _mm256_setzero_ps();
  }
  const uint8_t* next_codes = rows[0].codes + PrefetchDistance(weights);
  int64_t k = 0;
  for (int64_t block = 0; k < weights.columns; ++block) {
    BlockValues256 values[kRows];
    Halves256 widened[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) values[r] = ValuesOfBlock256<kType>(weights, rows[r], block);
    const int64_t left = weights.columns - k;
    const int64_t block_end = k + (left < block_columns ? left : block_columns);
    for (; k + 16 <= block_end; k += 16) {
      if (kInteger && kTokens == 1) PrefetchRange<kStepBytes>(next_codes + k / 16 * kStepBytes);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) widened[r] = Weights16<kType>(rows[r].codes, k, values[r]);
      Add16Columns256<kRows, kTokens, false>(widened, x + k, x_stride, nullptr, sums);
    }
    if (k < block_end) {
      int32_t mask[16];
      for (int i = 0; i < 16; ++i) mask[i] = k + i < block_end ? -1 : 0;
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) widened[r] = LastWeights<kType>(rows[r].codes, k, block_end - k, values[r]);
      Add16Columns256<kRows, kTokens, true>(widened, x + k, x_stride, mask, sums);
      k = block_end;
    }
  }
#pragma GCC unroll 2
  for (int t = 0; t < kTokens; ++t) {
    __m128 fours[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) fours[r] = FoldTo4(sums[t][r % kRows][0], sums[t][r % kRows][1]);
    StoreOutputs(y + t * y_stride, SumLanes4(fours[0], fours[1], fours[2], fours[3]), count < kRows ? count : kRows);
  }
}

template <WeightType kType>
void MultiplyFloats256(const WeightRows& weights, int64_t row_begin, int64_t row_end, const float* packed,
                       int64_t tokens, float* y, int64_t y_stride) {
  const TokenTiles<kFloatTokens256> tiles(tokens);
  const int64_t band = CachedRows(weights);
  for (int64_t begin = row_begin; begin < row_end; begin += band) {
    const int64_t end = row_end - begin < band ? row_end : begin + band;
    for (int64_t i = 0; i < tiles.count; ++i) {
      const float* x = packed + tiles.Begin(i) * PaddedColumns(weights);
      float* target = y + tiles.Begin(i) * y_stride;
      if (tiles.Size(i) == 1) {
        for (int64_t row = begin; row < end; row += 4) {
          FloatTile256<kType, 4, 1>(weights, row, end - row, x, target + (row - row_begin), y_stride);
        }
      } else {
        for (int64_t row = begin; row < end; row += 3) {
          FloatTile256<kType, 3, 2>(weights, row, end - row, x, target + (row - row_begin), y_stride);
        }
      }
    }
  }
}

}  // namespace
}  // namespace lfm
