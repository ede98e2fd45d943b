// What attention with AVX2 and AVX-512 share: sum and maximum of 16 lanes.
#pragma once

#include "x86/rows.h"

namespace lfm {
namespace {

LFM_INLINE float SumOf16(__m256 low, __m256 high) {
  const __m128 four = FoldTo4(low, high), two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

LFM_INLINE float LargestOf16(__m256 low, __m256 high) {
  const __m256 eight = _mm256_max_ps(low, high);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

}  // namespace
}  // namespace lfm
