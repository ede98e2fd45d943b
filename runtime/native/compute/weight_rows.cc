// A row of weights of any type as float32.
#include "weight_rows.h"

#include <algorithm>

namespace lfm {

void DequantizeRow(const WeightRows& weights, int64_t row, float* out) {
  const uint8_t* data = RowData(weights, row);
  if (weights.type == WeightType::kFloat32) {
    std::memcpy(out, data, static_cast<size_t>(weights.columns) * sizeof(float));
    return;
  }
  if (weights.type == WeightType::kFloat16) {
    for (int64_t k = 0; k < weights.columns; ++k) {
      uint16_t half;
      std::memcpy(&half, data + 2 * k, sizeof(half));
      out[k] = HalfToFloat(half);
    }
    return;
  }
  for (int64_t block = 0; block < weights.blocks; ++block) {
    const int64_t begin = block * weights.block_size;
    const int64_t end = std::min(begin + weights.block_size, weights.columns);
    const float scale = Scale(weights, row, block);
    const int zero_point = ZeroPoint(weights, row, block);
    if (weights.type == WeightType::kInt8) {
      for (int64_t k = begin; k < end; ++k) out[k] = static_cast<float>(data[k] - zero_point) * scale;
    } else {
      const uint8_t* bytes = data + begin / 2;
      const int64_t pairs = (end - begin) / 2;
      for (int64_t i = 0; i < pairs; ++i) {
        out[begin + 2 * i] = static_cast<float>((bytes[i] & 15) - zero_point) * scale;
        out[begin + 2 * i + 1] = static_cast<float>((bytes[i] >> 4) - zero_point) * scale;
      }
      if ((end - begin) % 2) out[end - 1] = static_cast<float>((bytes[pairs] & 15) - zero_point) * scale;
    }
  }
}

}  // namespace lfm
