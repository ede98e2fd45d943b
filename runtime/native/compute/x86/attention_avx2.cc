// Attention with AVX2: 16 floats are two registers, a tile of 4 rows and 16 outputs takes half of them.
#include "x86/attention.h"

namespace lfm {
namespace {

struct Lanes {
  __m256 low, high;

  static LFM_INLINE Lanes Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static LFM_INLINE Lanes Load(const float* source) { return {_mm256_loadu_ps(source), _mm256_loadu_ps(source + 8)}; }
  static LFM_INLINE Lanes Broadcast(const float* source) {
    const __m256 value = _mm256_broadcast_ss(source);
    return {value, value};
  }
  static LFM_INLINE Lanes Fill(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static LFM_INLINE Lanes MultiplyAdd(Lanes a, Lanes b, Lanes c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static LFM_INLINE Lanes Add(Lanes a, Lanes b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static LFM_INLINE Lanes Subtract(Lanes a, Lanes b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
  }
  static LFM_INLINE Lanes Multiply(Lanes a, Lanes b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }
  static LFM_INLINE Lanes Larger(Lanes a, Lanes b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
  }
  static LFM_INLINE Lanes PowerOfTwo(Lanes x) { return {PowerOfTwo(x.low), PowerOfTwo(x.high)}; }
  static LFM_INLINE Lanes ZeroBelow(Lanes x, Lanes limit, Lanes y) {
    return {_mm256_and_ps(_mm256_cmp_ps(x.low, limit.low, _CMP_NLT_UQ), y.low),
            _mm256_and_ps(_mm256_cmp_ps(x.high, limit.high, _CMP_NLT_UQ), y.high)};
  }
  static LFM_INLINE __m256 PowerOfTwo(__m256 x) {
    const __m256i field = _mm256_add_epi32(_mm256_castps_si256(x), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(field, 23));
  }
  LFM_INLINE float Sum() const { return SumOf16(low, high); }
  LFM_INLINE float Largest() const { return LargestOf16(low, high); }
  LFM_INLINE void Store(float* target) const {
    _mm256_storeu_ps(target, low);
    _mm256_storeu_ps(target + 8, high);
  }
};

constexpr int kTileVectors = 1;

LFM_INLINE void Transpose8(const float* rows, int64_t stride, float* out, int64_t out_stride) {
  __m256 pairs[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    const __m256 even = _mm256_loadu_ps(rows + i * stride), odd = _mm256_loadu_ps(rows + (i + 1) * stride);
    pairs[i] = _mm256_unpacklo_ps(even, odd);
    pairs[i + 1] = _mm256_unpackhi_ps(even, odd);
  }
  __m256 quads[8];
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    _mm256_storeu_ps(out + c * out_stride, _mm256_permute2f128_ps(quads[c], quads[c + 4], 0x20));
    _mm256_storeu_ps(out + (c + 4) * out_stride, _mm256_permute2f128_ps(quads[c], quads[c + 4], 0x31));
  }
}

LFM_INLINE void Transpose16(const float* rows, int64_t stride, float* out, int64_t out_stride) {
  Transpose8(rows, stride, out, out_stride);
  Transpose8(rows + 8, stride, out + 8 * out_stride, out_stride);
  Transpose8(rows + 8 * stride, stride, out + 8, out_stride);
  Transpose8(rows + 8 * stride + 8, stride, out + 8 * out_stride + 8, out_stride);
}

}  // namespace
}  // namespace lfm

#include "attention_loops.h"

namespace lfm {

extern const AttentionKernels kAttentionAvx2;
const AttentionKernels kAttentionAvx2 = {"avx2", Attend};

}  // namespace lfm
