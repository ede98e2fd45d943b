// What the feed-forward ops have in common: their weights and activations, checked against each other.
#pragma once

#include "feed_forward.h"
#include "op_weights.h"

namespace lfm {

struct FeedForwardInputs {
  WeightInputs gate_up;
  WeightInputs down;
};

// One network, or `stack` experts where stack > 0; gate_up_rows (both halves) and hidden may be kAnySize as in
// FindWeights. OpError where the weights do not fit each other.
FeedForward ReadFeedForward(const OpInputs& inputs, const KernelTable& kernels, const WeightFormat& format,
                            const FeedForwardInputs& at, int64_t stack, int64_t gate_up_rows, int64_t hidden);

// The input x [.., size] of a call; OpError where its last axis has another size.
Tensor RequireActivations(const OpInputs& inputs, size_t index, int64_t size);

}  // namespace lfm
