// Attention on ARM64: 16 floats are four registers, a tile of 4 rows and 16 outputs takes half of them.
#include <arm_neon.h>

#include <cstdint>

#define LFM_INLINE inline __attribute__((always_inline))
#define LFM_INLINE_LAMBDA __attribute__((always_inline))

namespace lfm {
namespace {

struct Lanes {
  float32x4_t values[4];

  static LFM_INLINE Lanes Zero() {
    const float32x4_t zero = vdupq_n_f32(0.0f);
    return {{zero, zero, zero, zero}};
  }
  static LFM_INLINE Lanes Load(const float* source) {
    return {{vld1q_f32(source), vld1q_f32(source + 4), vld1q_f32(source + 8), vld1q_f32(source + 12)}};
  }
  static LFM_INLINE Lanes Broadcast(const float* source) {
    const float32x4_t value = vld1q_dup_f32(source);
    return {{value, value, value, value}};
  }
  static LFM_INLINE Lanes Fill(float number) {
    const float32x4_t value = vdupq_n_f32(number);
    return {{value, value, value, value}};
  }
  template <class Operation>
  static LFM_INLINE Lanes OfVectors(const Operation& operation) {
    return {{operation(0), operation(1), operation(2), operation(3)}};
  }
  static LFM_INLINE Lanes MultiplyAdd(const Lanes& a, const Lanes& b, const Lanes& c) {
    return OfVectors([&](int i) LFM_INLINE_LAMBDA { return vfmaq_f32(c.values[i], a.values[i], b.values[i]); });
  }
  static LFM_INLINE Lanes Add(const Lanes& a, const Lanes& b) {
    return OfVectors([&](int i) LFM_INLINE_LAMBDA { return vaddq_f32(a.values[i], b.values[i]); });
  }
  static LFM_INLINE Lanes Subtract(const Lanes& a, const Lanes& b) {
    return OfVectors([&](int i) LFM_INLINE_LAMBDA { return vsubq_f32(a.values[i], b.values[i]); });
  }
  static LFM_INLINE Lanes Multiply(const Lanes& a, const Lanes& b) {
    return OfVectors([&](int i) LFM_INLINE_LAMBDA { return vmulq_f32(a.values[i], b.values[i]); });
  }
  // Not vmaxq_f32: it gives NaN where either is one.
  static LFM_INLINE float32x4_t Larger(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static LFM_INLINE Lanes Larger(const Lanes& a, const Lanes& b) {
    return OfVectors([&](int i) LFM_INLINE_LAMBDA { return Larger(a.values[i], b.values[i]); });
  }
  static LFM_INLINE Lanes PowerOfTwo(const Lanes& x) {
    return OfVectors([&](int i) LFM_INLINE_LAMBDA {
      const int32x4_t field = vaddq_s32(vreinterpretq_s32_f32(x.values[i]), vdupq_n_s32(127));
      return vreinterpretq_f32_s32(vshlq_n_s32(field, 23));
    });
  }
  static LFM_INLINE Lanes ZeroBelow(const Lanes& x, const Lanes& limit, const Lanes& y) {
    return OfVectors([&](int i) LFM_INLINE_LAMBDA {
      const uint32x4_t below = vcltq_f32(x.values[i], limit.values[i]);
      return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(y.values[i]), below));
    });
  }
  LFM_INLINE float Sum() const {
    const float32x4_t four = vaddq_f32(vaddq_f32(values[0], values[2]), vaddq_f32(values[1], values[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
  LFM_INLINE float Largest() const {
    // No lane is a NaN here.
    return vmaxvq_f32(Larger(Larger(values[0], values[2]), Larger(values[1], values[3])));
  }
  LFM_INLINE void Store(float* target) const {
    vst1q_f32(target, values[0]);
    vst1q_f32(target + 4, values[1]);
    vst1q_f32(target + 8, values[2]);
    vst1q_f32(target + 12, values[3]);
  }
};

constexpr int kTileVectors = 1;

LFM_INLINE void Transpose4(const float* rows, int64_t stride, float* out, int64_t out_stride) {
  const float32x4_t a = vld1q_f32(rows), b = vld1q_f32(rows + stride), c = vld1q_f32(rows + 2 * stride),
                    d = vld1q_f32(rows + 3 * stride);
  const float64x2_t ab_low = vreinterpretq_f64_f32(vzip1q_f32(a, b)), ab_high = vreinterpretq_f64_f32(vzip2q_f32(a, b));
  const float64x2_t cd_low = vreinterpretq_f64_f32(vzip1q_f32(c, d)), cd_high = vreinterpretq_f64_f32(vzip2q_f32(c, d));
  vst1q_f32(out, vreinterpretq_f32_f64(vzip1q_f64(ab_low, cd_low)));
  vst1q_f32(out + out_stride, vreinterpretq_f32_f64(vzip2q_f64(ab_low, cd_low)));
  vst1q_f32(out + 2 * out_stride, vreinterpretq_f32_f64(vzip1q_f64(ab_high, cd_high)));
  vst1q_f32(out + 3 * out_stride, vreinterpretq_f32_f64(vzip2q_f64(ab_high, cd_high)));
}

LFM_INLINE void Transpose16(const float* rows, int64_t stride, float* out, int64_t out_stride) {
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 16; j += 4) Transpose4(rows + i * stride + j, stride, out + j * out_stride + i, out_stride);
  }
}

}  // namespace
}  // namespace lfm

#include "attention_loops.h"

namespace lfm {

extern const AttentionKernels kAttentionNeon;
const AttentionKernels kAttentionNeon = {"neon", Attend};

}  // namespace lfm
