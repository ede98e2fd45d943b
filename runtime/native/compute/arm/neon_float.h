// Float path on ARM: weights of any type as float32, 16 lanes, one row against up to four tokens.
#pragma once

#include "arm/neon_activations.h"

namespace lfm {
namespace {

constexpr int kFloatLanes = 16;
constexpr int kFloatTokens = 4;  // tokens that share the conversion of a row

// A reader gives 16 consecutive elements of a row as float32; `count` < 16 at the row's end, the others are anything.
struct Float32Row {
  const uint8_t* data;
  Float32Row(const WeightRows& weights, int64_t row)
      : data(static_cast<const uint8_t*>(weights.data) + row * weights.row_bytes) {}
  LFM_INLINE void Read(int64_t k, int64_t count, float32x4_t (&out)[4]) const {
    float copy[kFloatLanes] = {};
    const float* source = reinterpret_cast<const float*>(data) + k;
    if (count < kFloatLanes) {
      std::memcpy(copy, source, static_cast<size_t>(count) * sizeof(float));
      source = copy;
    }
    for (int i = 0; i < 4; ++i) out[i] = vld1q_f32(source + 4 * i);
  }
};

struct Float16Row {
  const uint8_t* data;
  Float16Row(const WeightRows& weights, int64_t row)
      : data(static_cast<const uint8_t*>(weights.data) + row * weights.row_bytes) {}
  LFM_INLINE void Read(int64_t k, int64_t count, float32x4_t (&out)[4]) const {
    uint16_t copy[kFloatLanes] = {};
    const uint16_t* source = reinterpret_cast<const uint16_t*>(data) + k;
    if (count < kFloatLanes) {
      std::memcpy(copy, source, static_cast<size_t>(count) * sizeof(uint16_t));
      source = copy;
    }
    for (int i = 0; i < 4; ++i) out[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(source + 4 * i)));
  }
};

// Formats are told apart as the row is read: this path is not made for speed.
template <int kBits>
struct IntegerRow {
  const WeightRows& weights;
  RowPointers row;
  int block_shift;
  IntegerRow(const WeightRows& all, int64_t index)
      : weights(all), row(RowAt(all, index)), block_shift(__builtin_ctz(static_cast<unsigned>(all.block_size))) {}
  // Blocks are whole in the file, so that 16 codes can always be read.
  LFM_INLINE void Read(int64_t k, int64_t, float32x4_t (&out)[4]) const {
    const int64_t block = k >> block_shift;
    uint8x16_t codes;
    if constexpr (kBits == 4) {
      const uint8x8_t bytes = vld1_u8(row.codes + k / 2);
      const uint8x8_t even = vand_u8(bytes, vdup_n_u8(15)), odd = vshr_n_u8(bytes, 4);
      codes = vcombine_u8(vzip1_u8(even, odd), vzip2_u8(even, odd));
    } else {
      codes = vld1q_u8(row.codes + k);
    }
    using Symmetric = BlockFormat<kBits, 32, true, false>;
    using Asymmetric = BlockFormat<kBits, 32, true, true>;
    const int32_t zero_point = row.zero_points == nullptr ? ZeroPointAt<Symmetric>(nullptr, block)
                                                          : ZeroPointAt<Asymmetric>(row.zero_points, block);
    const uint8x8_t zero_points = vdup_n_u8(static_cast<uint8_t>(zero_point));
    const int16x8_t low = vreinterpretq_s16_u16(vsubl_u8(vget_low_u8(codes), zero_points));
    const int16x8_t high = vreinterpretq_s16_u16(vsubl_u8(vget_high_u8(codes), zero_points));
    const float scale = Scale(block);
    out[0] = vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), scale);
    out[1] = vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))), scale);
    out[2] = vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), scale);
    out[3] = vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_high_s16(high))), scale);
  }
  LFM_INLINE float Scale(int64_t block) const {
    if (!weights.scales_are_float16) return LoadUnaligned<float>(row.scales + block * 4);
    const uint16x4_t half = vdup_n_u16(LoadUnaligned<uint16_t>(row.scales + block * 2));
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(half)), 0);
  }
};

// Elements beyond the row's end leave their lanes as they are: not even 0 * infinity may enter.
LFM_INLINE float32x4_t AddFirstLanes(float32x4_t lanes, float32x4_t sum, int64_t count) {
  const uint32_t index[4] = {0, 1, 2, 3};
  const uint32x4_t keep = vcltq_u32(vld1q_u32(index), vdupq_n_u32(static_cast<uint32_t>(count < 0 ? 0 : count)));
  return vbslq_f32(keep, sum, lanes);
}

template <typename Row, int kTokens>
void MultiplyFloatRow(const Row& row, int64_t columns, const float* x, int64_t x_stride, float* y, int64_t y_stride) {
  float32x4_t lanes[kTokens][4];
  for (auto& token : lanes) {
    for (float32x4_t& four : token) four = vdupq_n_f32(0.0f);
  }
  float32x4_t w[4];
  int64_t k = 0;
  for (; k + kFloatLanes <= columns; k += kFloatLanes) {
    row.Read(k, kFloatLanes, w);
    for (int t = 0; t < kTokens; ++t) {
      for (int i = 0; i < 4; ++i) lanes[t][i] = vfmaq_f32(lanes[t][i], w[i], vld1q_f32(x + t * x_stride + k + 4 * i));
    }
  }
  if (const int64_t left = columns - k; left > 0) {
    row.Read(k, left, w);
    for (int t = 0; t < kTokens; ++t) {
      for (int i = 0; i < 4; ++i) {
        const float32x4_t sum = vfmaq_f32(lanes[t][i], w[i], vld1q_f32(x + t * x_stride + k + 4 * i));
        lanes[t][i] = AddFirstLanes(lanes[t][i], sum, left - 4 * i);
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    const float32x4_t four = SumLanes(lanes[t]);
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    y[t * y_stride] = vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
}

template <typename Row>
void MultiplyFloatRows(const WeightRows& weights, int64_t row_begin, int64_t row_end, const float* packed,
                       int64_t tokens, float* y, int64_t y_stride) {
  const int64_t stride = PaddedColumns(weights), columns = weights.columns;
  for (int64_t r = row_begin; r < row_end; ++r) {
    const Row row(weights, r);
    for (int64_t t = 0; t < tokens; t += kFloatTokens) {
      const float* x = packed + t * stride;
      float* out = y + t * y_stride + r - row_begin;
      switch (tokens - t) {
        case 1: MultiplyFloatRow<Row, 1>(row, columns, x, stride, out, y_stride); break;
        case 2: MultiplyFloatRow<Row, 2>(row, columns, x, stride, out, y_stride); break;
        case 3: MultiplyFloatRow<Row, 3>(row, columns, x, stride, out, y_stride); break;
        default: MultiplyFloatRow<Row, kFloatTokens>(row, columns, x, stride, out, y_stride);
      }
    }
  }
}

LFM_INLINE void MultiplyFloats(const WeightRows& weights, int64_t row_begin, int64_t row_end, const float* packed,
                               int64_t tokens, float* y, int64_t y_stride) {
  if (weights.type == WeightType::kFloat32) {
    MultiplyFloatRows<Float32Row>(weights, row_begin, row_end, packed, tokens, y, y_stride);
  } else if (weights.type == WeightType::kFloat16) {
    MultiplyFloatRows<Float16Row>(weights, row_begin, row_end, packed, tokens, y, y_stride);
  } else if (weights.type == WeightType::kInt8) {
    MultiplyFloatRows<IntegerRow<8>>(weights, row_begin, row_end, packed, tokens, y, y_stride);
  } else {
    MultiplyFloatRows<IntegerRow<4>>(weights, row_begin, row_end, packed, tokens, y, y_stride);
  }
}

}  // namespace
}  // namespace lfm
