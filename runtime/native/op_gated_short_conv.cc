// ai.liquid::GatedShortConv: double-gated causal depthwise convolution over time, with its state.
#include "custom_op.h"
#include "ops.h"
#include "short_conv.h"

namespace lfm {
namespace {

enum Input : size_t { kBCx, kWeight, kMask, kPastConv, kBias, kInputs };

constexpr OpInput kInputList[kInputs] = {
    {"BCx", ElementType::kFloat32, false},  {"weight", ElementType::kFloat32, false},
    {"mask", ElementType::kFloat32, false}, {"past_conv", ElementType::kFloat32, false},
    {"bias", ElementType::kFloat32, true},
};

class GatedShortConv {
 public:
  static constexpr OpSignature kSignature = {"GatedShortConv", kInputList, kInputs, 2};

  explicit GatedShortConv(const NodeInfo& node) {
    Tensor weight;
    if (node.Find(kWeight, &weight)) CheckWeight(node, weight.shape);
  }

  void Compute(NodeCall& call) const {
    const Tensor weight = call.Require(kWeight), bcx = call.Require(kBCx);
    CheckWeight(call, weight.shape);
    const int64_t taps = weight.shape[0], hidden = weight.shape[1];
    if (bcx.shape.rank != 3 || bcx.shape[2] != 3 * hidden) {
      call.FailInput(kBCx,
                     "expected [batch, sequence, " + std::to_string(3 * hidden) + "], found shape " + bcx.shape.Text());
    }
    const int64_t batch = bcx.shape[0], sequence = bcx.shape[1];
    ShortConv conv{batch,   sequence, hidden,  taps,    bcx.Floats(), weight.Floats(),
                   nullptr, nullptr,  nullptr, nullptr, nullptr};
    conv.mask = call.Floats(kMask, {batch, sequence});
    conv.past = call.Floats(kPastConv, {batch, hidden, taps});
    conv.bias = call.FloatsOrNull(kBias, {hidden});
    conv.y = call.Output(0, {batch, sequence, hidden});
    conv.present = call.Output(1, {batch, hidden, taps});
    RunShortConv(conv, call);
  }

 private:
  static void CheckWeight(const OpInputs& inputs, const Shape& shape) {
    if (shape.rank != 2 || shape[0] < 1 || shape[0] > kMaxTaps || shape[1] < 1 || shape[1] > kMaxSize) {
      inputs.FailInput(kWeight, "expected [taps, hidden] with 1 to " + std::to_string(kMaxTaps) +
                                    " taps, found shape " + shape.Text());
    }
  }
};

}  // namespace

const OrtCustomOp* GatedShortConvOp() { return CustomOp<GatedShortConv>::Get(); }

}  // namespace lfm
