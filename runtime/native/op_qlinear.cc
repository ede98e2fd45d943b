// ai.liquid::QLinear: y = x @ weight^T + bias, weights float or in integer blocks.
#include <optional>

#include "custom_op.h"
#include "isa_dispatch.h"
#include "linear.h"
#include "op_weights.h"
#include "ops.h"

namespace lfm {
namespace {

enum Input : size_t { kX, kWeight, kScales, kZeroPoints, kBias, kInputs };

constexpr OpInput kInputList[kInputs] = {
    {"x", ElementType::kFloat32, false},       {"weight", ElementType::kUndefined, false},
    {"scales", ElementType::kUndefined, true}, {"zero_points", ElementType::kUint8, true},
    {"bias", ElementType::kFloat32, true},
};

class QLinear {
 public:
  static constexpr OpSignature kSignature = {"QLinear", kInputList, kInputs, 1};

  explicit QLinear(const NodeInfo& node) : kernels_(SelectKernels()), format_(node) {
    // Blocks hide how many columns the last one has; a float matrix shows both.
    if (format_.IsInteger()) {
      columns_ = node.RequiredInt("K", 1, kMaxSize);
      rows_ = node.RequiredInt("N", 1, kMaxSize);
    } else {
      columns_ = node.Int("K", kAnySize, 1, kMaxSize);
      rows_ = node.Int("N", kAnySize, 1, kMaxSize);
    }
    if (node.AllConstant(kWeight)) constants_ = Read(node);
  }

  void Compute(NodeCall& call) const {
    const Operands operands = constants_ ? *constants_ : Read(call);
    const Tensor x = call.Require(kX);
    if (x.shape.rank == 0 || x.shape.Last() != operands.weights.rows.columns) {
      call.FailInput(kX, "expected a last axis of " + std::to_string(operands.weights.rows.columns) + ", found shape " +
                             x.shape.Text());
    }
    float* y = call.Output(0, x.shape.WithLast(operands.weights.row_count));
    const ScratchLease scratch;
    Linear(kernels_, operands.weights.rows, operands.weights.row_count, format_.activation, x.Floats(),
           x.shape.CountBefore(x.shape.rank - 1), operands.bias, y, Scratch::kPackedInput, *scratch, call);
  }

 private:
  struct Operands {
    Weights weights;
    const float* bias;
  };

  Operands Read(const OpInputs& inputs) const {
    Operands operands{FindWeights(inputs, format_, {kWeight, kScales, kZeroPoints}, 0, rows_, columns_), nullptr};
    operands.bias = inputs.FloatsOrNull(kBias, {operands.weights.row_count});
    return operands;
  }

  const KernelTable& kernels_;
  WeightFormat format_;
  int64_t columns_ = kAnySize;
  int64_t rows_ = kAnySize;
  std::optional<Operands> constants_;
};

}  // namespace

const OrtCustomOp* QLinearOp() { return CustomOp<QLinear>::Get(); }

}  // namespace lfm
