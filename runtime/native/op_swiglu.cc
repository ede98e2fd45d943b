// ai.liquid::SwiGLU: the dense feed-forward, down @ (silu(gate @ x) * (up @ x)).
#include <optional>

#include "custom_op.h"
#include "isa_dispatch.h"
#include "op_feed_forward.h"
#include "ops.h"

namespace lfm {
namespace {

enum Input : size_t { kX, kGateUp, kDown, kGateUpScales, kDownScales, kGateUpZeroPoints, kDownZeroPoints, kInputs };

constexpr OpInput kInputList[kInputs] = {
    {"x", ElementType::kFloat32, false},
    {"gate_up", ElementType::kUndefined, false},
    {"down", ElementType::kUndefined, false},
    {"gate_up_scales", ElementType::kUndefined, true},
    {"down_scales", ElementType::kUndefined, true},
    {"gate_up_zero_points", ElementType::kUint8, true},
    {"down_zero_points", ElementType::kUint8, true},
};

class SwiGLU {
 public:
  static constexpr OpSignature kSignature = {"SwiGLU", kInputList, kInputs, 1};

  explicit SwiGLU(const NodeInfo& node) : kernels_(SelectKernels()), format_(node) {
    if (format_.IsInteger()) {
      hidden_ = node.RequiredInt("K", 1, kMaxSize);
      width_ = node.RequiredInt("F", 1, kMaxSize);
    } else {
      hidden_ = node.Int("K", kAnySize, 1, kMaxSize);
      width_ = node.Int("F", kAnySize, 1, kMaxSize);
    }
    if (node.AllConstant(kGateUp)) constants_.emplace(Read(node));
  }

  void Compute(NodeCall& call) const {
    const FeedForward network = constants_ ? *constants_ : Read(call);
    const Tensor x = RequireActivations(call, kX, network.hidden);
    float* y = call.Output(0, x.shape);
    const ScratchLease scratch;
    DenseFeedForward(network, x.Floats(), x.shape.CountBefore(x.shape.rank - 1), y, *scratch, call);
  }

 private:
  FeedForward Read(const OpInputs& inputs) const {
    const int64_t rows = width_ == kAnySize ? kAnySize : 2 * width_;
    const FeedForwardInputs at{{kGateUp, kGateUpScales, kGateUpZeroPoints}, {kDown, kDownScales, kDownZeroPoints}};
    return ReadFeedForward(inputs, kernels_, format_, at, 0, rows, hidden_);
  }

  const KernelTable& kernels_;
  WeightFormat format_;
  int64_t hidden_ = kAnySize;
  int64_t width_ = kAnySize;
  std::optional<FeedForward> constants_;
};

}  // namespace

const OrtCustomOp* SwiGLUOp() { return CustomOp<SwiGLU>::Get(); }

}  // namespace lfm
