// Attention with AVX-512: 16 floats are one register, a tile of 4 rows and 64 outputs takes half of them.
#include "x86/attention.h"

namespace lfm {
namespace {

struct Lanes {
  __m512 value;

  static LFM_INLINE Lanes Zero() { return {_mm512_setzero_ps()}; }
  static LFM_INLINE Lanes Load(const float* source) { return {_mm512_loadu_ps(source)}; }
  static LFM_INLINE Lanes Broadcast(const float* source) { return {_mm512_set1_ps(*source)}; }
  static LFM_INLINE Lanes Fill(float value) { return {_mm512_set1_ps(value)}; }
  static LFM_INLINE Lanes MultiplyAdd(Lanes a, Lanes b, Lanes c) {
    return {_mm512_fmadd_ps(a.value, b.value, c.value)};
  }
  static LFM_INLINE Lanes Add(Lanes a, Lanes b) { return {_mm512_add_ps(a.value, b.value)}; }
  static LFM_INLINE Lanes Subtract(Lanes a, Lanes b) { return {_mm512_sub_ps(a.value, b.value)}; }
  static LFM_INLINE Lanes Multiply(Lanes a, Lanes b) { return {_mm512_mul_ps(a.value, b.value)}; }
  static LFM_INLINE Lanes Larger(Lanes a, Lanes b) { return {_mm512_max_ps(a.value, b.value)}; }
  static LFM_INLINE Lanes PowerOfTwo(Lanes x) {
    const __m512i field = _mm512_add_epi32(_mm512_castps_si512(x.value), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(field, 23))};
  }
  static LFM_INLINE Lanes ZeroBelow(Lanes x, Lanes limit, Lanes y) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.value, limit.value, _CMP_NLT_UQ), y.value)};
  }
  LFM_INLINE void Store(float* target) const { _mm512_storeu_ps(target, value); }
  LFM_INLINE float Sum() const { return SumOf16(Low(), High()); }
  LFM_INLINE float Largest() const { return LargestOf16(Low(), High()); }
  LFM_INLINE __m256 Low() const { return _mm512_castps512_ps256(value); }
  LFM_INLINE __m256 High() const { return _mm512_extractf32x8_ps(value, 1); }
};

constexpr int kTileVectors = 4;

LFM_INLINE void Transpose16(const float* rows, int64_t stride, float* out, int64_t out_stride) {
  __m512 pairs[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    const __m512 even = _mm512_loadu_ps(rows + i * stride), odd = _mm512_loadu_ps(rows + (i + 1) * stride);
    pairs[i] = _mm512_unpacklo_ps(even, odd);
    pairs[i + 1] = _mm512_unpackhi_ps(even, odd);
  }
  // quads[4 i + c]: in each of four parts, column 4 * part + c of rows 4i..4i+3.
  __m512 quads[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    quads[i] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    quads[i + 1] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    quads[i + 2] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    quads[i + 3] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 low02 = _mm512_shuffle_f32x4(quads[c], quads[c + 4], 0x88);
    const __m512 low13 = _mm512_shuffle_f32x4(quads[c], quads[c + 4], 0xdd);
    const __m512 high02 = _mm512_shuffle_f32x4(quads[c + 8], quads[c + 12], 0x88);
    const __m512 high13 = _mm512_shuffle_f32x4(quads[c + 8], quads[c + 12], 0xdd);
    _mm512_storeu_ps(out + c * out_stride, _mm512_shuffle_f32x4(low02, high02, 0x88));
    _mm512_storeu_ps(out + (c + 4) * out_stride, _mm512_shuffle_f32x4(low13, high13, 0x88));
    _mm512_storeu_ps(out + (c + 8) * out_stride, _mm512_shuffle_f32x4(low02, high02, 0xdd));
    _mm512_storeu_ps(out + (c + 12) * out_stride, _mm512_shuffle_f32x4(low13, high13, 0xdd));
  }
}

}  // namespace
}  // namespace lfm

#include "attention_loops.h"

namespace lfm {

extern const AttentionKernels kAttentionAvx512;
const AttentionKernels kAttentionAvx512 = {"avx512", Attend};

}  // namespace lfm
