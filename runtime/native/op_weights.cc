// Checks type, shape and companions of a weight tensor before any kernel reads it.
#include "op_weights.h"

namespace lfm {
namespace {

Shape Stacked(int64_t stack, std::initializer_list<int64_t> dims) {
  Shape shape;
  if (stack > 0) shape.dims[shape.rank++] = stack;
  for (const int64_t dim : dims) shape.dims[shape.rank++] = dim;
  return shape;
}

int64_t MatchingSize(const OpInputs& inputs, size_t index, const char* axis, int64_t found, int64_t expected) {
  if (expected == kAnySize && found >= 1 && found <= kMaxSize) return found;
  if (found != expected) {
    inputs.FailInput(index, std::string("expected ") + (expected == kAnySize ? "1 or more" : std::to_string(expected)) +
                                " " + axis + ", found " + std::to_string(found));
  }
  return found;
}

void RequireAbsent(const OpInputs& inputs, size_t index) {
  Tensor tensor;
  if (index != kNoInput && inputs.Find(index, &tensor)) inputs.FailInput(index, "float weights have none, found one");
}

}  // namespace

WeightFormat::WeightFormat(const NodeInfo& node) {
  bits = static_cast<int>(node.Int("bits", 32, 4, 32));
  if (bits != 4 && bits != 8 && bits != 16 && bits != 32) {
    node.FailAttribute("bits", "expected 4, 8, 16 or 32, found " + std::to_string(bits));
  }
  const int64_t activation_bits = node.Int("activation_bits", 0, 0, 8);
  if (activation_bits != 0 && activation_bits != 8) {
    node.FailAttribute("activation_bits", "expected 0 or 8, found " + std::to_string(activation_bits));
  }
  if (!IsInteger()) return;
  block_size = static_cast<int>(node.RequiredInt("block_size", 1, 1024));
  if (block_size != 32 && block_size != 64 && block_size != 128) {
    node.FailAttribute("block_size", "expected 32, 64 or 128, found " + std::to_string(block_size));
  }
  if (activation_bits == 8) activation = ActivationType::kInt8PerBlock;
}

Weights FindWeights(const OpInputs& inputs, const WeightFormat& format, const WeightInputs& at, int64_t stack,
                    int64_t row_count, int64_t columns) {
  const Tensor data = inputs.Require(at.data);
  if (format.IsInteger()) {
    inputs.CheckType(at.data, data, ElementType::kUint8);
  } else if (data.type != ElementType::kFloat16 || format.bits == 16) {
    // Without the attribute the tensor says which float it is.
    inputs.CheckType(at.data, data, format.bits == 16 ? ElementType::kFloat16 : ElementType::kFloat32);
  }
  const size_t row_axis = stack > 0 ? 1 : 0;
  const size_t rank = data.shape.rank;
  if (rank != row_axis + 2 && !(format.IsInteger() && rank == row_axis + 3)) {
    inputs.FailInput(at.data, "expected " + std::to_string(row_axis + 2) + " axes, found shape " + data.shape.Text());
  }
  if (stack > 0) MatchingSize(inputs, at.data, "matrices", data.shape[0], stack);

  Weights weights{};
  WeightRows& rows = weights.rows;
  weights.row_count = MatchingSize(inputs, at.data, "rows", data.shape[row_axis], row_count);
  rows.data = data.data;

  if (!format.IsInteger()) {
    const bool half = data.type == ElementType::kFloat16;
    rows.type = half ? WeightType::kFloat16 : WeightType::kFloat32;
    rows.columns = MatchingSize(inputs, at.data, "columns", data.shape[row_axis + 1], columns);
    rows.row_bytes = rows.columns * (half ? 2 : 4);
    RequireAbsent(inputs, at.scales);
    RequireAbsent(inputs, at.zero_points);
    return weights;
  }

  rows.type = format.bits == 4 ? WeightType::kInt4 : WeightType::kInt8;
  rows.columns = columns;
  rows.block_size = format.block_size;
  rows.blocks = format.Blocks(columns);
  const int64_t block_bytes = format.block_size * format.bits / 8;
  rows.row_bytes = rows.blocks * block_bytes;
  const Shape flat = Stacked(stack, {weights.row_count, rows.row_bytes});
  const Shape in_blocks = Stacked(stack, {weights.row_count, rows.blocks, block_bytes});
  if (!(data.shape == flat)) inputs.CheckShape(at.data, data, in_blocks);

  const Tensor scales = inputs.Require(at.scales);
  if (scales.type != ElementType::kFloat16) inputs.CheckType(at.scales, scales, ElementType::kFloat32);
  inputs.CheckShape(at.scales, scales, Stacked(stack, {weights.row_count, rows.blocks}));
  rows.scales = scales.data;
  rows.scales_are_float16 = scales.type == ElementType::kFloat16;

  Tensor zero_points;
  if (inputs.Find(at.zero_points, &zero_points)) {
    inputs.CheckType(at.zero_points, zero_points, ElementType::kUint8);
    rows.zero_point_row_bytes = (rows.blocks * format.bits + 7) / 8;
    inputs.CheckShape(at.zero_points, zero_points, Stacked(stack, {weights.row_count, rows.zero_point_row_bytes}));
    rows.zero_points = static_cast<const uint8_t*>(zero_points.data);
  }
  return weights;
}

}  // namespace lfm
