// Reading single values of a weight matrix: codes, zero points and scales at their places in the layout.
#pragma once

#include <cstdint>
#include <cstring>

#include "float16.h"
#include "kernel_table.h"

// `static`: files compiled for different instruction sets include this, and the linker must not merge their copies.
namespace lfm {

static inline const uint8_t* RowData(const WeightRows& weights, int64_t row) {
  return static_cast<const uint8_t*>(weights.data) + row * weights.row_bytes;
}

static inline bool IsInteger(const WeightRows& weights) {
  return weights.type == WeightType::kInt4 || weights.type == WeightType::kInt8;
}

// Element `index` of a packed int4 or int8 sequence.
static inline int Code(const uint8_t* packed, WeightType type, int64_t index) {
  if (type == WeightType::kInt8) return packed[index];
  return (index % 2 ? packed[index / 2] >> 4 : packed[index / 2]) & 15;
}

static inline float Scale(const WeightRows& weights, int64_t row, int64_t block) {
  const int64_t index = row * weights.blocks + block;
  if (!weights.scales_are_float16) {
    float scale;
    std::memcpy(&scale, static_cast<const float*>(weights.scales) + index, sizeof(scale));
    return scale;
  }
  uint16_t half;
  std::memcpy(&half, static_cast<const uint16_t*>(weights.scales) + index, sizeof(half));
  return HalfToFloat(half);
}

static inline int ZeroPoint(const WeightRows& weights, int64_t row, int64_t block) {
  if (weights.zero_points == nullptr) return weights.type == WeightType::kInt8 ? 128 : 8;
  return Code(weights.zero_points + row * weights.zero_point_row_bytes, weights.type, block);
}

// Row `row` as float32 [columns].
void DequantizeRow(const WeightRows& weights, int64_t row, float* out);

}  // namespace lfm
