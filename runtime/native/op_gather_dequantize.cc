// ai.liquid::GatherDequantize: rows of a table of weights as float32, the embedding lookup.
#include <algorithm>
#include <optional>

#include "custom_op.h"
#include "op_weights.h"
#include "ops.h"
#include "weight_rows.h"

namespace lfm {
namespace {

enum Input : size_t { kTable, kScales, kZeroPoints, kIds, kInputs };

constexpr OpInput kInputList[kInputs] = {
    {"table", ElementType::kUndefined, false},
    {"scales", ElementType::kUndefined, true},
    {"zero_points", ElementType::kUint8, true},
    {"ids", ElementType::kInt64, false},
};

class GatherDequantize {
 public:
  static constexpr OpSignature kSignature = {"GatherDequantize", kInputList, kInputs, 1};

  explicit GatherDequantize(const NodeInfo& node) : format_(node) {
    columns_ = format_.IsInteger() ? node.RequiredInt("K", 1, kMaxSize) : node.Int("K", kAnySize, 1, kMaxSize);
    if (node.AllConstant(kTable, kIds)) constants_ = Read(node);
  }

  void Compute(NodeCall& call) const {
    const Weights table = constants_ ? *constants_ : Read(call);
    const Tensor ids = call.Require(kIds);
    if (ids.shape.rank == Shape::kMaxRank) call.FailInput(kIds, "expected fewer axes, found " + ids.shape.Text());
    Shape shape = ids.shape;
    shape.dims[shape.rank++] = table.rows.columns;
    const auto* id = static_cast<const int64_t*>(ids.data);
    const int64_t count = ids.shape.CountFrom(0), rows = table.row_count, columns = table.rows.columns;
    for (int64_t i = 0; i < count; ++i) {
      if (id[i] < -rows || id[i] >= rows) {
        call.FailInput(kIds, "expected " + std::to_string(-rows) + " to " + std::to_string(rows - 1) + ", found " +
                                 std::to_string(id[i]));
      }
    }
    float* out = call.Output(0, shape);
    // A row takes a microsecond: 16 make a task.
    constexpr int64_t kRowsPerTask = 16;
    call.For((count + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
      const int64_t end = std::min(count, (task + 1) * kRowsPerTask);
      for (int64_t i = task * kRowsPerTask; i < end; ++i) {
        DequantizeRow(table.rows, id[i] < 0 ? id[i] + rows : id[i], out + i * columns);
      }
    });
  }

 private:
  Weights Read(const OpInputs& inputs) const {
    return FindWeights(inputs, format_, {kTable, kScales, kZeroPoints}, 0, kAnySize, columns_);
  }

  WeightFormat format_;
  int64_t columns_;
  std::optional<Weights> constants_;
};

}  // namespace

const OrtCustomOp* GatherDequantizeOp() { return CustomOp<GatherDequantize>::Get(); }

}  // namespace lfm
