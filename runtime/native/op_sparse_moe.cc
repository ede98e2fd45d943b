// ai.liquid::SparseMoE: sigmoid router with selection bias, and the SwiGLU experts that it chooses.
#include <optional>

#include "custom_op.h"
#include "isa_dispatch.h"
#include "op_feed_forward.h"
#include "ops.h"

namespace lfm {
namespace {

enum Input : size_t {
  kX,
  kRouterWeight,
  kExpertBias,
  kGateUp,
  kDown,
  kGateUpScales,
  kDownScales,
  kGateUpZeroPoints,
  kDownZeroPoints,
  kInputs
};

constexpr OpInput kInputList[kInputs] = {
    {"x", ElementType::kFloat32, false},
    {"router_weight", ElementType::kFloat32, false},
    {"expert_bias", ElementType::kFloat32, false},
    {"gate_up", ElementType::kUndefined, false},
    {"down", ElementType::kUndefined, false},
    {"gate_up_scales", ElementType::kUndefined, true},
    {"down_scales", ElementType::kUndefined, true},
    {"gate_up_zero_points", ElementType::kUint8, true},
    {"down_zero_points", ElementType::kUint8, true},
};

class SparseMoE {
 public:
  static constexpr OpSignature kSignature = {"SparseMoE", kInputList, kInputs, 1};

  explicit SparseMoE(const NodeInfo& node) : kernels_(SelectKernels()), format_(node) {
    top_k_ = node.RequiredInt("top_k", 1, kMaxTopK);
    normalize_ = node.RequiredInt("norm_topk_prob", 0, 1) == 1;
    scaling_ = node.RequiredFloat("routed_scaling_factor");
    if (node.AllConstant(kRouterWeight)) constants_.emplace(Read(node));
  }

  void Compute(NodeCall& call) const {
    const Operands operands = constants_ ? *constants_ : Read(call);
    const Tensor x = RequireActivations(call, kX, operands.experts.hidden);
    float* y = call.Output(0, x.shape);
    const ScratchLease scratch;
    SparseFeedForward(operands.experts, operands.router, x.Floats(), x.shape.CountBefore(x.shape.rank - 1), y, *scratch,
                      call);
  }

 private:
  struct Operands {
    FeedForward experts;
    Router router;
  };

  Operands Read(const OpInputs& inputs) const {
    const Shape router_shape = inputs.Require(kRouterWeight).shape;
    if (router_shape.rank != 2 || router_shape[0] < top_k_ || router_shape[0] > kMaxSize || router_shape[1] < 1 ||
        router_shape[1] > kMaxSize) {
      inputs.FailInput(kRouterWeight, "expected [experts, hidden] with at least top_k = " + std::to_string(top_k_) +
                                          " experts, found shape " + router_shape.Text());
    }
    const int64_t count = router_shape[0], hidden = router_shape[1];
    Router router{};
    router.weight.type = WeightType::kFloat32;
    router.weight.columns = hidden;
    router.weight.data = inputs.Floats(kRouterWeight, router_shape);
    router.weight.row_bytes = hidden * static_cast<int64_t>(sizeof(float));
    router.bias = inputs.Floats(kExpertBias, {count});
    router.rule = {count, top_k_, normalize_, scaling_};

    const FeedForwardInputs at{{kGateUp, kGateUpScales, kGateUpZeroPoints}, {kDown, kDownScales, kDownZeroPoints}};
    return {ReadFeedForward(inputs, kernels_, format_, at, count, kAnySize, hidden), router};
  }

  const KernelTable& kernels_;
  WeightFormat format_;
  int64_t top_k_;
  bool normalize_;
  float scaling_;
  std::optional<Operands> constants_;
};

}  // namespace

const OrtCustomOp* SparseMoEOp() { return CustomOp<SparseMoE>::Get(); }

}  // namespace lfm
