// ai.liquid::GroupQueryAttention: rotary positions, the KV cache's new columns, and attention over the cache.
#include <cmath>
#include <vector>

#include "attention.h"
#include "custom_op.h"
#include "isa_dispatch.h"
#include "ops.h"

namespace lfm {
namespace {

enum Input : size_t {
  kQuery,
  kKey,
  kValue,
  kPastKey,
  kPastValue,
  kSeqlensK,
  kTotalSequenceLength,
  kCosCache,
  kSinCache,
  kInputs
};

constexpr OpInput kInputList[kInputs] = {
    {"query", ElementType::kFloat32, false},
    {"key", ElementType::kFloat32, false},
    {"value", ElementType::kFloat32, false},
    {"past_key", ElementType::kFloat32, false},
    {"past_value", ElementType::kFloat32, false},
    {"seqlens_k", ElementType::kInt32, false},
    {"total_sequence_length", ElementType::kInt32, false},
    {"cos_cache", ElementType::kFloat32, true},
    {"sin_cache", ElementType::kFloat32, true},
};

class GroupQueryAttention {
 public:
  static constexpr OpSignature kSignature = {"GroupQueryAttention", kInputList, kInputs, 3};

  explicit GroupQueryAttention(const NodeInfo& node)
      : kernels_(AttentionKernelsBeside(SelectKernels().name)),
        heads_(node.RequiredInt("num_heads", 1, kMaxHeads)),
        kv_heads_(node.RequiredInt("kv_num_heads", 1, kMaxHeads)),
        rotates_(node.RequiredInt("do_rotary", 0, 1) != 0),
        scale_(node.RequiredFloat("scale")) {
    if (heads_ % kv_heads_ != 0) {
      node.FailAttribute("num_heads", "expected a multiple of kv_num_heads = " + std::to_string(kv_heads_) +
                                          ", found " + std::to_string(heads_));
    }
  }

  void Compute(NodeCall& call) const {
    Attention attention{};
    attention.heads = heads_;
    attention.kv_heads = kv_heads_;
    FindSizes(call, &attention);
    const std::vector<int64_t> pasts = FindPasts(call, &attention);
    attention.pasts = pasts.data();
    if (rotates_) FindRotation(call, pasts, &attention);
    attention.scale = scale_ != 0 ? scale_ : 1.0f / std::sqrt(static_cast<float>(attention.head_dim));

    const Shape present = {attention.batch, kv_heads_, attention.present_columns, attention.head_dim};
    attention.output = call.Output(0, {attention.batch, attention.sequence, heads_ * attention.head_dim});
    attention.present_key = call.Output(1, present);
    attention.present_value = call.Output(2, present);
    CheckBuffers(call, kPastKey, attention, attention.past_key, attention.present_key);
    CheckBuffers(call, kPastValue, attention, attention.past_value, attention.present_value);
    RunAttention(attention, kernels_, call);
  }

 private:
  static constexpr int64_t kMaxHeads = 65536;

  void FindSizes(const NodeCall& call, Attention* attention) const {
    const Tensor query = call.Require(kQuery);
    if (query.shape.rank != 3 || query.shape[2] % heads_ != 0) {
      call.FailInput(kQuery, "expected [batch, sequence, num_heads * head_dim] with num_heads = " +
                                 std::to_string(heads_) + ", found shape " + query.shape.Text());
    }
    const int64_t batch = query.shape[0], sequence = query.shape[1], head_dim = query.shape[2] / heads_;
    if (head_dim < kHeadDimStep || head_dim > kMaxHeadDim || head_dim % kHeadDimStep != 0) {
      call.FailInput(kQuery, "expected a head_dim that is a multiple of " + std::to_string(kHeadDimStep) +
                                 ", at most " + std::to_string(kMaxHeadDim) + ", found " + std::to_string(head_dim));
    }
    const Tensor past = call.Require(kPastKey);
    if (past.shape.rank != 4) {
      call.FailInput(kPastKey, "expected [batch, kv_num_heads, columns, head_dim], found shape " + past.shape.Text());
    }
    if (batch > kMaxSize || sequence > kMaxSize || past.shape[2] > kMaxSize) {
      call.FailInput(kQuery, "expected sizes up to " + std::to_string(kMaxSize) + ", found shape " +
                                 query.shape.Text() + " beside a past of " + past.shape.Text());
    }
    attention->batch = batch;
    attention->sequence = sequence;
    attention->head_dim = head_dim;
    attention->past_columns = past.shape[2];
    attention->query = query.Floats();
    attention->key = call.Floats(kKey, {batch, sequence, kv_heads_ * head_dim});
    attention->value = call.Floats(kValue, {batch, sequence, kv_heads_ * head_dim});
    attention->past_key = call.Floats(kPastKey, {batch, kv_heads_, past.shape[2], head_dim});
    attention->past_value = call.Floats(kPastValue, {batch, kv_heads_, past.shape[2], head_dim});
  }

  // Columns that each row of the batch had before, and the present's size: a cache with room keeps its own, one
  // without grows by the new columns.
  std::vector<int64_t> FindPasts(const NodeCall& call, Attention* attention) const {
    const int64_t sequence = attention->sequence, past_columns = attention->past_columns;
    const Tensor total_tensor = call.Require(kTotalSequenceLength), lasts = call.Require(kSeqlensK);
    call.CheckType(kTotalSequenceLength, total_tensor, ElementType::kInt32);
    if (total_tensor.shape.CountFrom(0) != 1) {
      call.FailInput(kTotalSequenceLength, "expected one number, found shape " + total_tensor.shape.Text());
    }
    const int64_t total = *static_cast<const int32_t*>(total_tensor.data);
    if (total < sequence || (total > past_columns && total != past_columns + sequence)) {
      call.FailInput(kTotalSequenceLength,
                     "expected " + std::to_string(sequence) + " to " + std::to_string(past_columns) + ", or " +
                         std::to_string(past_columns + sequence) + ", found " + std::to_string(total));
    }
    attention->present_columns = std::max(total, past_columns);

    call.CheckType(kSeqlensK, lasts, ElementType::kInt32);
    if (lasts.shape.rank < 1 || lasts.shape.CountFrom(0) != attention->batch) {
      call.FailInput(kSeqlensK,
                     "expected " + std::to_string(attention->batch) + " numbers, found shape " + lasts.shape.Text());
    }
    std::vector<int64_t> pasts(static_cast<size_t>(attention->batch));
    for (size_t row = 0; row < pasts.size(); ++row) {
      const int64_t last = static_cast<const int32_t*>(lasts.data)[row];
      if (last < 0 || last >= total) {
        if (sequence == 0 && last == -1) continue;
        call.FailInput(kSeqlensK, "expected 0 to total_sequence_length - 1 = " + std::to_string(total - 1) +
                                      ", found " + std::to_string(last));
      }
      // A prompt with padding behind it may count its tokens alone: its columns are written all the same.
      pasts[row] = std::max<int64_t>(last + 1 - sequence, 0);
    }
    return pasts;
  }

  static void FindRotation(const NodeCall& call, const std::vector<int64_t>& pasts, Attention* attention) {
    const Tensor cos = call.Require(kCosCache);
    const int64_t half = attention->head_dim / 2;
    if (cos.shape.rank != 2 || cos.shape[1] != half) {
      call.FailInput(kCosCache, "expected [positions, head_dim / 2 = " + std::to_string(half) + "], found shape " +
                                    cos.shape.Text());
    }
    attention->cos = call.Floats(kCosCache, cos.shape);
    attention->sin = call.Floats(kSinCache, cos.shape);
    for (const int64_t past : pasts) {
      if (past + attention->sequence > cos.shape[0]) {
        call.FailInput(kCosCache, "expected " + std::to_string(past + attention->sequence) +
                                      " positions or more, found shape " + cos.shape.Text());
      }
    }
  }

  // Past and present are one buffer of one layout, or apart.
  static void CheckBuffers(const NodeCall& call, size_t input, const Attention& a, const float* past,
                           const float* present) {
    if (past == present && a.past_columns == a.present_columns) return;
    const auto begin = [](const float* floats) { return reinterpret_cast<uintptr_t>(floats); };
    const auto end = [&](const float* floats, int64_t columns) {
      return begin(floats) + static_cast<uintptr_t>(a.batch * a.kv_heads * columns * a.head_dim) * sizeof(float);
    };
    if (begin(past) < end(present, a.present_columns) && begin(present) < end(past, a.past_columns)) {
      call.FailInput(input, "expected the buffer of its present or one apart from it, found one that overlaps it");
    }
  }

  const AttentionKernels& kernels_;
  int64_t heads_;
  int64_t kv_heads_;
  bool rotates_;
  float scale_;
};

}  // namespace

const OrtCustomOp* GroupQueryAttentionOp() { return CustomOp<GroupQueryAttention>::Get(); }

}  // namespace lfm
