// ai.liquid::SplitQKVNorm: a fused projection as query, key and value, queries and keys normalized per head.
#include "custom_op.h"
#include "head_norm.h"
#include "ops.h"

namespace lfm {
namespace {

enum Input : size_t { kQkv, kQWeight, kKWeight, kInputs };

constexpr OpInput kInputList[kInputs] = {
    {"qkv", ElementType::kFloat32, false},
    {"q_weight", ElementType::kFloat32, false},
    {"k_weight", ElementType::kFloat32, false},
};

class SplitQKVNorm {
 public:
  static constexpr OpSignature kSignature = {"SplitQKVNorm", kInputList, kInputs, 3};

  explicit SplitQKVNorm(const NodeInfo& node)
      : heads_(node.RequiredInt("num_heads", 1, kMaxHeads)),
        kv_heads_(node.RequiredInt("kv_num_heads", 1, kMaxHeads)),
        epsilon_(node.RequiredFloat("epsilon")) {}

  void Compute(NodeCall& call) const {
    const Tensor qkv = call.Require(kQkv), q_weight = call.Require(kQWeight);
    if (q_weight.shape.rank != 1 || q_weight.shape[0] < 1 || q_weight.shape[0] > kMaxSize) {
      call.FailInput(kQWeight, "expected [head_dim], found shape " + q_weight.shape.Text());
    }
    const int64_t head_dim = q_weight.shape[0];
    const int64_t expected = (heads_ + 2 * kv_heads_) * head_dim;
    if (qkv.shape.rank == 0 || qkv.shape.Last() != expected) {
      call.FailInput(kQkv, "expected a last axis of (num_heads + 2 * kv_num_heads) * head_dim = " +
                               std::to_string(expected) + ", found shape " + qkv.shape.Text());
    }
    HeadNorm norm{};
    norm.tokens = qkv.shape.CountBefore(qkv.shape.rank - 1);
    norm.heads = heads_;
    norm.kv_heads = kv_heads_;
    norm.head_dim = head_dim;
    norm.epsilon = epsilon_;
    norm.qkv = qkv.Floats();
    norm.q_weight = q_weight.Floats();
    norm.k_weight = call.Floats(kKWeight, {head_dim});
    norm.q = call.Output(0, qkv.shape.WithLast(heads_ * head_dim));
    norm.k = call.Output(1, qkv.shape.WithLast(kv_heads_ * head_dim));
    norm.v = call.Output(2, qkv.shape.WithLast(kv_heads_ * head_dim));
    RunHeadNorm(norm, call);
  }

 private:
  static constexpr int64_t kMaxHeads = 65536;

  int64_t heads_;
  int64_t kv_heads_;
  float epsilon_;
};

}  // namespace

const OrtCustomOp* SplitQKVNormOp() { return CustomOp<SplitQKVNorm>::Get(); }

}  // namespace lfm
