// Decode with AVX2: a few tokens times rows that are read once; products of bytes go through int16 without saturation.
//
// int4: codes up to 15 times 127, two low and two high nibbles: at most 7620.
// int8: maddubs takes unsigned times signed bytes, two products per int16. |code - 128| <= 128 times the activation
//   with the sign of code - 128 is at most 2 * 128 * 127 = 32512; with the code itself two products would not fit.
#pragma once

#include "x86/activations.h"

namespace lfm {
namespace {

LFM_INLINE __m256i Load256(const void* source) { return _mm256_loadu_si256(static_cast<const __m256i*>(source)); }

// Scales of lanes [8 * half, 8 * half + 8) of a group.
template <typename Format>
LFM_INLINE __m256 LaneScales256(const uint8_t* scales, int half) {
  constexpr int kBlocks = Format::kGroupBlocks;
  const uint8_t* first = scales + (kBlocks == 1 ? 0 : half * kBlocks / 2) * Format::kScaleBytes;
  if constexpr (Format::kHalfScales) {
    if constexpr (kBlocks < 4) {
      return _mm256_cvtph_ps(_mm_set1_epi16(LoadUnaligned<int16_t>(first)));
    } else {
      const __m128i lanes = _mm_setr_epi16(0x0100, 0x0100, 0x0100, 0x0100, 0x0302, 0x0302, 0x0302, 0x0302);
      return _mm256_cvtph_ps(_mm_shuffle_epi8(_mm_cvtsi32_si128(LoadUnaligned<int32_t>(first)), lanes));
    }
  } else {
    if constexpr (kBlocks < 4) {
      return _mm256_set1_ps(LoadUnaligned<float>(first));
    } else {
      return _mm256_set_m128(_mm_set1_ps(LoadUnaligned<float>(first + 4)), _mm_set1_ps(LoadUnaligned<float>(first)));
    }
  }
}

// Zero points of lanes [8 * half, 8 * half + 8) of a group, less what the codes are shifted by.
template <typename Format>
LFM_INLINE __m256i LaneZeroPoints256(const uint8_t* zero_points, int64_t group, int half) {
  constexpr int kBlocks = Format::kGroupBlocks;
  constexpr int kShift = Format::kBits == 8 ? 128 : 0;
  if constexpr (kBlocks == 1) {
    return _mm256_set1_epi32(ZeroPointAt<Format::kBits>(zero_points, group / Format::kBlockGroups) - kShift);
  } else if constexpr (kBlocks == 2) {
    return _mm256_set1_epi32(ZeroPointAt<Format::kBits>(zero_points, group * 2 + half) - kShift);
  } else {
    const int pair = zero_points[group * 2 + half];  // blocks of 32 int4 elements: four per group, two per byte
    return _mm256_set_m128i(_mm_set1_epi32(pair >> 4), _mm_set1_epi32(pair & 15));
  }
}

// Sums of (code - shift) * activation over the 8 lanes of half a group, without corrections.
template <int kBits>
LFM_INLINE __m256i HalfGroupDot(__m256i codes, const uint8_t* activations) {
  __m256i pairs;
  if (kBits == 4) {
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i even = _mm256_maddubs_epi16(_mm256_and_si256(codes, nibble), Load256(activations));
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble);
    pairs = _mm256_add_epi16(even, _mm256_maddubs_epi16(high, Load256(activations + 64)));
  } else {
    const __m256i shifted = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
    pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(shifted), _mm256_sign_epi8(Load256(activations), shifted));
  }
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

// One group of kRows rows times kTokens tokens; lanes 0..7 and 8..15 apart. `group` counts from each row's pointers.
template <typename Format, int kRows, int kTokens>
LFM_INLINE void AddGroup256(const RowPointers (&rows)[kRows], int64_t group, const uint8_t* activations,
                            int64_t token_bytes, __m256 (&sums)[kTokens][kRows][2]) {
  constexpr int kCodeBytes = Format::kBits == 4 ? 128 : 64;
  constexpr bool kCorrected = Format::kBits == 4 || Format::kZeroPoints;
  const int64_t scale_offset = Format::kBlockGroups == 1 ? group * Format::kGroupBlocks : group / Format::kBlockGroups;
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256i codes = Load256(rows[r].codes + group * Format::kGroupBytes + half * 32);
      const __m256 scales = LaneScales256<Format>(rows[r].scales + scale_offset * Format::kScaleBytes, half);
      __m256i zero_points = _mm256_setzero_si256();
      if (Format::kZeroPoints) zero_points = LaneZeroPoints256<Format>(rows[r].zero_points, group, half);
#pragma GCC unroll 3
      for (int t = 0; t < kTokens; ++t) {
        const uint8_t* packed = activations + t * token_bytes + half * 32;
        __m256i dot = HalfGroupDot<Format::kBits>(codes, packed);
        if (kCorrected) {
          __m256i correction = Load256(packed + kCodeBytes);
          if (Format::kZeroPoints) correction = _mm256_madd_epi16(zero_points, correction);
          dot = _mm256_add_epi32(dot, correction);
        }
        const __m256 scale =
            _mm256_mul_ps(scales, _mm256_loadu_ps(reinterpret_cast<const float*>(packed + kCodeBytes + 64)));
        sums[t][r][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, sums[t][r][half]);
      }
    }
  }
}

// Rows [row, row + kRows), of which `count` exist, times all tokens.
template <typename Format, int kRows, int kTokens>
LFM_INLINE void FewRows256(const WeightRows& weights, int64_t row, int64_t count, const uint8_t* packed, float* y,
                           int64_t y_stride) {
  constexpr int kGroupActivationBytes = Format::kBits == 4 ? 256 : 192;
  const int64_t token_bytes = VectorGroups(weights) * kGroupActivationBytes;
  const int64_t whole_groups = weights.blocks * Format::kBlock / Format::kGroup;
  RowPointers rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r] = RowAt(weights, row + (r < count ? r : 0));
  __m256 sums[kTokens][kRows][2];
#pragma GCC unroll 3
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) sums[t][r][0] = sums[t][r][1] = _mm256_setzero_ps();
  }
  const uint8_t* next_codes = rows[0].codes + PrefetchDistance(weights);
  const uint8_t* next_scales = rows[0].scales + PrefetchDistance(weights) / 64 * Format::kGroupScaleBytes;
  if (Format::kZeroPoints) PrefetchRange<64>(rows[kRows - 1].zero_points + 4 * weights.zero_point_row_bytes);
  for (int64_t g = 0; g < whole_groups; ++g) {
    PrefetchRange<kRows * 64>(next_codes + g * kRows * 64);
    Prefetch(next_scales + g * kRows * Format::kGroupScaleBytes);
    AddGroup256<Format, kRows, kTokens>(rows, g, packed + g * kGroupActivationBytes, token_bytes, sums);
  }
  if (whole_groups * Format::kGroupBlocks < weights.blocks && Format::kBlockGroups == 1) {
    GroupCopy copies[kRows];
    RowPointers last[kRows];
    for (int r = 0; r < kRows; ++r) {
      last[r] = CopyPartialGroup<Format>(rows[r], whole_groups, weights.blocks, &copies[r]);
    }
    AddGroup256<Format, kRows, kTokens>(last, 0, packed + whole_groups * kGroupActivationBytes, token_bytes, sums);
  }
#pragma GCC unroll 3
  for (int t = 0; t < kTokens; ++t) {
    __m128 fours[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) fours[r] = FoldTo4(sums[t][r % kRows][0], sums[t][r % kRows][1]);
    StoreOutputs(y + t * y_stride, SumLanes4(fours[0], fours[1], fours[2], fours[3]), count < kRows ? count : kRows);
  }
}

template <typename Format, int kTokens>
void MultiplyVectors256(const WeightRows& weights, int64_t row_begin, int64_t row_end, const uint8_t* packed, float* y,
                        int64_t y_stride) {
  constexpr int kRows = kTokens == 1 ? 4 : 2;  // sums in 8 to 12 of the 16 registers
  for (int64_t row = row_begin; row < row_end; row += kRows) {
    FewRows256<Format, kRows, kTokens>(weights, row, row_end - row, packed, y + (row - row_begin), y_stride);
  }
}

}  // namespace
}  // namespace lfm
