// Portable kernels: the definition of every result, written to be read. All instruction sets must equal them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "fused_multiply_add.h"
#include "kernel_table.h"
#include "weight_rows.h"

namespace lfm {
namespace {

constexpr int kLanes = 16;
// Below this maximum of a block, 127 / maximum could overflow: the block counts as zeros.
constexpr float kSmallestMaximum = 0x1p-120f;

int64_t RoundUp(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

bool QuantizesActivations(const WeightRows& weights, ActivationType activation) {
  return activation == ActivationType::kInt8PerBlock && IsInteger(weights);
}

// Packed integer activations: float scales [tokens, blocks], then int8 [tokens, blocks * block_size].
// Packed float activations: float [tokens, columns].
const int8_t* PackedCodes(const WeightRows& weights, const void* packed, int64_t tokens) {
  return reinterpret_cast<const int8_t*>(static_cast<const float*>(packed) + tokens * weights.blocks);
}

size_t PackedBytes(const WeightRows& weights, ActivationType activation, int64_t tokens) {
  const int64_t token_bytes = QuantizesActivations(weights, activation)
                                  ? weights.blocks * (static_cast<int64_t>(sizeof(float)) + weights.block_size)
                                  : weights.columns * static_cast<int64_t>(sizeof(float));
  return static_cast<size_t>(RoundUp(tokens * token_bytes, 64));
}

// One block of `count` values to `size` codes; returns scale_a.
float QuantizeBlock(const float* x, int64_t count, int64_t size, int8_t* codes) {
  float maximum = 0;
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    finite = finite && std::isfinite(x[i]);
    maximum = std::max(maximum, std::fabs(x[i]));
  }
  std::memset(codes, 0, static_cast<size_t>(size));
  if (!finite) return std::numeric_limits<float>::quiet_NaN();
  if (maximum >= kSmallestMaximum) {
    const float inverse = 127.0f / maximum;
    for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
  }
  return maximum / 127.0f;
}

void Pack(const WeightRows& weights, ActivationType activation, const float* x, int64_t x_stride, int64_t tokens,
          void* packed) {
  float* floats = static_cast<float*>(packed);
  if (!QuantizesActivations(weights, activation)) {
    for (int64_t t = 0; t < tokens; ++t) std::copy_n(x + t * x_stride, weights.columns, floats + t * weights.columns);
    return;
  }
  int8_t* codes = const_cast<int8_t*>(PackedCodes(weights, packed, tokens));
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t block = 0; block < weights.blocks; ++block) {
      const int64_t begin = block * weights.block_size;
      const int64_t count = std::min<int64_t>(weights.block_size, weights.columns - begin);
      floats[t * weights.blocks + block] = QuantizeBlock(x + t * x_stride + begin, count, weights.block_size,
                                                         codes + (t * weights.blocks + block) * weights.block_size);
    }
  }
}

float SumLanes(float (&lanes)[kLanes]) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// Exact sum of (code - zero_point) * a over elements [begin, end) of a row, all of one block.
int32_t IntegerDot(const WeightRows& weights, const uint8_t* row_codes, int zero_point, const int8_t* a, int64_t begin,
                   int64_t end) {
  int32_t sum = 0;
  for (int64_t k = begin; k < end; ++k) sum += (Code(row_codes, weights.type, k) - zero_point) * a[k];
  return sum;
}

float DotInVectorOrder(const WeightRows& weights, int64_t row, const float* scales, const int8_t* codes) {
  const uint8_t* row_codes = RowData(weights, row);
  const int64_t lane_elements = weights.type == WeightType::kInt4 ? 8 : 4;
  const int64_t elements = weights.blocks * weights.block_size;
  float lanes[kLanes] = {};
  for (int64_t group = 0; group < elements; group += kLanes * lane_elements) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t begin = group + lane * lane_elements;
      int32_t sum = 0;
      float scale = 0;
      if (begin < elements) {
        const int64_t block = begin / weights.block_size;
        sum = IntegerDot(weights, row_codes, ZeroPoint(weights, row, block), codes, begin, begin + lane_elements);
        scale = Scale(weights, row, block) * scales[block];
      }
      lanes[lane] = FusedMultiplyAdd(static_cast<float>(sum), scale, lanes[lane]);
    }
  }
  return SumLanes(lanes);
}

float DotInTileOrder(const WeightRows& weights, int64_t row, const float* scales, const int8_t* codes) {
  const uint8_t* row_codes = RowData(weights, row);
  float sum = 0;
  for (int64_t block = 0; block < weights.blocks; ++block) {
    const int64_t begin = block * weights.block_size;
    const int32_t dot =
        IntegerDot(weights, row_codes, ZeroPoint(weights, row, block), codes, begin, begin + weights.block_size);
    sum = FusedMultiplyAdd(static_cast<float>(dot), Scale(weights, row, block) * scales[block], sum);
  }
  return sum;
}

float WeightAt(const WeightRows& weights, int64_t row, int64_t k) {
  const uint8_t* data = RowData(weights, row);
  if (weights.type == WeightType::kFloat32) {
    float value;
    std::memcpy(&value, data + k * 4, sizeof(value));
    return value;
  }
  if (weights.type == WeightType::kFloat16) {
    uint16_t half;
    std::memcpy(&half, data + k * 2, sizeof(half));
    return HalfToFloat(half);
  }
  const int64_t block = k / weights.block_size;
  return static_cast<float>(Code(data, weights.type, k) - ZeroPoint(weights, row, block)) * Scale(weights, row, block);
}

float FloatDot(const WeightRows& weights, int64_t row, const float* x) {
  float lanes[kLanes] = {};
  for (int64_t k = 0; k < weights.columns; ++k) {
    lanes[k % kLanes] = FusedMultiplyAdd(WeightAt(weights, row, k), x[k], lanes[k % kLanes]);
  }
  return SumLanes(lanes);
}

void Multiply(const WeightRows& weights, ActivationType activation, int64_t row_begin, int64_t row_end,
              const void* packed, int64_t tokens, float* y, int64_t y_stride) {
  const float* floats = static_cast<const float*>(packed);
  const bool integer = QuantizesActivations(weights, activation);
  const int8_t* codes = integer ? PackedCodes(weights, packed, tokens) : nullptr;
  const auto dot = tokens < kTileTokens ? DotInVectorOrder : DotInTileOrder;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t row = row_begin; row < row_end; ++row) {
      y[t * y_stride + row - row_begin] =
          integer ? dot(weights, row, floats + t * weights.blocks, codes + t * weights.blocks * weights.block_size)
                  : FloatDot(weights, row, floats + t * weights.columns);
    }
  }
}

}  // namespace

const KernelTable* ScalarKernels() {
  static constexpr KernelTable table = {"scalar", PackedBytes, Pack, Multiply};
  return &table;
}

}  // namespace lfm
