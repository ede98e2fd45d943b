// Decode with AVX512-VNNI: a few tokens times rows that are read once, at the speed of memory.
//
// Four rows at a time: 16 lanes of a group are one register, two dot-product instructions read the low and the high
// nibbles, and the accumulator starts at the activations' correction, so that a symmetric zero point costs nothing.
#pragma once

#include "x86/activations.h"

namespace lfm {
namespace {

// A row's block scales of one group, one per lane.
template <typename Format>
LFM_INLINE __m512 LaneScales512(const uint8_t* scales) {
  constexpr int kBlocks = Format::kGroupBlocks;
  if constexpr (Format::kHalfScales) {
    if constexpr (kBlocks == 1) {
      return _mm512_cvtph_ps(_mm256_set1_epi16(LoadUnaligned<int16_t>(scales)));
    } else if constexpr (kBlocks == 2) {
      const __m256i pair = _mm256_set1_epi32(LoadUnaligned<int32_t>(scales));
      const __m256i lanes = _mm256_set_m128i(_mm_set1_epi16(0x0302), _mm_set1_epi16(0x0100));
      return _mm512_cvtph_ps(_mm256_shuffle_epi8(pair, lanes));
    } else {
      const __m256i four = _mm256_set1_epi64x(LoadUnaligned<int64_t>(scales));
      const __m256i lanes = _mm256_setr_epi16(0x0100, 0x0100, 0x0100, 0x0100, 0x0302, 0x0302, 0x0302, 0x0302, 0x0504,
                                              0x0504, 0x0504, 0x0504, 0x0706, 0x0706, 0x0706, 0x0706);
      return _mm512_cvtph_ps(_mm256_shuffle_epi8(four, lanes));
    }
  } else {
    if constexpr (kBlocks == 1) {
      return _mm512_set1_ps(LoadUnaligned<float>(scales));
    } else {
      const __m512i lanes = kBlocks == 2 ? _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1)
                                         : _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
      const __m128 few = kBlocks == 2 ? _mm_castpd_ps(_mm_set_sd(LoadUnaligned<double>(scales)))
                                      : _mm_castsi128_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
      return _mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(few));
    }
  }
}

// A row's zero points of one group, one per lane.
template <typename Format>
LFM_INLINE __m512i LaneZeroPoints512(const uint8_t* zero_points, int64_t group) {
  constexpr int kBlocks = Format::kGroupBlocks;
  if constexpr (kBlocks == 1) {
    return _mm512_set1_epi32(ZeroPointAt<Format::kBits>(zero_points, group / Format::kBlockGroups));
  } else {
    constexpr int kBytes = kBlocks * Format::kBits / 8;
    const uint8_t* source = zero_points + group * kBytes;
    const int packed = kBytes == 2 ? LoadUnaligned<uint16_t>(source) : *source;
    constexpr int kShift = Format::kBits;
    const __m512i shifts = kBlocks == 2 ? _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, kShift, kShift, kShift, kShift,
                                                            kShift, kShift, kShift, kShift)
                                        : _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    return _mm512_and_si512(_mm512_srlv_epi32(_mm512_set1_epi32(packed), shifts),
                            _mm512_set1_epi32((1 << Format::kBits) - 1));
  }
}

// One group of kRows rows times kTokens tokens. `group` counts from each row's pointers.
template <typename Format, int kRows, int kTokens>
LFM_INLINE void AddGroup512(const RowPointers (&rows)[kRows], int64_t group, const uint8_t* activations,
                            int64_t token_bytes, __m512 (&sums)[kTokens][kRows]) {
  constexpr int kCodeBytes = Format::kBits == 4 ? 128 : 64;
  const __m512i nibble = _mm512_set1_epi8(15);
  const int64_t scale_offset = Format::kBlockGroups == 1 ? group * Format::kGroupBlocks : group / Format::kBlockGroups;
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const __m512i codes = _mm512_loadu_si512(rows[r].codes + group * Format::kGroupBytes);
    const __m512 scales = LaneScales512<Format>(rows[r].scales + scale_offset * Format::kScaleBytes);
    __m512i zero_points = _mm512_setzero_si512();
    if (Format::kZeroPoints) zero_points = LaneZeroPoints512<Format>(rows[r].zero_points, group);
#pragma GCC unroll 3
    for (int t = 0; t < kTokens; ++t) {
      const uint8_t* packed = activations + t * token_bytes;
      __m512i dot = _mm512_loadu_si512(packed + kCodeBytes);
      if (Format::kZeroPoints) dot = _mm512_madd_epi16(zero_points, dot);
      if (Format::kBits == 4) {
        dot = _mm512_dpbusd_epi32(dot, _mm512_and_si512(codes, nibble), _mm512_loadu_si512(packed));
        dot = _mm512_dpbusd_epi32(dot, _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble),
                                  _mm512_loadu_si512(packed + 64));
      } else {
        dot = _mm512_dpbusd_epi32(dot, codes, _mm512_loadu_si512(packed));
      }
      const __m512 scale = _mm512_mul_ps(scales, _mm512_loadu_ps(packed + kCodeBytes + 64));
      sums[t][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, sums[t][r]);
    }
  }
}

// Rows [row, row + 4), of which `count` exist, times all tokens.
template <typename Format, int kTokens>
LFM_INLINE void FourRows512(const WeightRows& weights, int64_t row, int64_t count, const uint8_t* packed, float* y,
                            int64_t y_stride) {
  constexpr int kRows = 4;
  constexpr int kGroupActivationBytes = Format::kBits == 4 ? 256 : 192;
  const int64_t token_bytes = VectorGroups(weights) * kGroupActivationBytes;
  const int64_t whole_groups = weights.blocks * Format::kBlock / Format::kGroup;
  RowPointers rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r] = RowAt(weights, row + (r < count ? r : 0));
  __m512 sums[kTokens][kRows];
#pragma GCC unroll 3
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) sums[t][r] = _mm512_setzero_ps();
  }
  const uint8_t* next_codes = rows[0].codes + PrefetchDistance(weights);
  const uint8_t* next_scales = rows[0].scales + PrefetchDistance(weights) / 64 * Format::kGroupScaleBytes;
  if (Format::kZeroPoints) PrefetchRange<64>(rows[3].zero_points + 4 * weights.zero_point_row_bytes);
  for (int64_t g = 0; g < whole_groups; ++g) {
    PrefetchRange<kRows * 64>(next_codes + g * kRows * 64);
    Prefetch(next_scales + g * kRows * Format::kGroupScaleBytes);
    AddGroup512<Format, kRows, kTokens>(rows, g, packed + g * kGroupActivationBytes, token_bytes, sums);
  }
  if (whole_groups * Format::kGroupBlocks < weights.blocks && Format::kBlockGroups == 1) {
    GroupCopy copies[kRows];
    RowPointers last[kRows];
    for (int r = 0; r < kRows; ++r) {
      last[r] = CopyPartialGroup<Format>(rows[r], whole_groups, weights.blocks, &copies[r]);
    }
    AddGroup512<Format, kRows, kTokens>(last, 0, packed + whole_groups * kGroupActivationBytes, token_bytes, sums);
  }
#pragma GCC unroll 3
  for (int t = 0; t < kTokens; ++t) {
    StoreOutputs(y + t * y_stride,
                 SumLanes4(FoldTo4(sums[t][0]), FoldTo4(sums[t][1]), FoldTo4(sums[t][2]), FoldTo4(sums[t][3])), count);
  }
}

template <typename Format, int kTokens>
void MultiplyVectors512(const WeightRows& weights, int64_t row_begin, int64_t row_end, const uint8_t* packed, float* y,
                        int64_t y_stride) {
  for (int64_t row = row_begin; row < row_end; row += 4) {
    FourRows512<Format, kTokens>(weights, row, row_end - row, packed, y + (row - row_begin), y_stride);
  }
}

}  // namespace
}  // namespace lfm
