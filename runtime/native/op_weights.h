// Weight inputs of the ops: the format that a node's attributes declare, and tensors checked against it.
#pragma once

#include "kernel_table.h"
#include "op_inputs.h"

namespace lfm {

// Attributes bits, block_size and activation_bits; a node without them has float weights.
struct WeightFormat {
  int bits = 32;  // 4, 8: integers in blocks; 16, 32: floats
  int block_size = 0;
  ActivationType activation = ActivationType::kFloat32;

  explicit WeightFormat(const NodeInfo& node);

  bool IsInteger() const { return bits <= 8; }
  int64_t Blocks(int64_t columns) const { return (columns + block_size - 1) / block_size; }
};

// The inputs that hold one matrix. Formats without scales or zero points must leave those absent.
struct WeightInputs {
  size_t data;
  size_t scales;
  size_t zero_points;
};

inline constexpr size_t kNoInput = SIZE_MAX;
inline constexpr int64_t kAnySize = -1;

struct Weights {
  WeightRows rows;
  int64_t row_count;  // of each matrix
};

// A matrix [row_count, columns], or a stack [stack, row_count, columns] where stack > 0. row_count may be kAnySize, and
// so may columns of float weights. Integer data is [.., row_count, blocks, bytes] or the last two axes as one.
Weights FindWeights(const OpInputs& inputs, const WeightFormat& format, const WeightInputs& at, int64_t stack,
                    int64_t row_count, int64_t columns);

}  // namespace lfm
