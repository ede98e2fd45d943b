// SwiGLU feed-forward networks, dense or a mixture of experts: down @ (silu(gate @ x) * (up @ x)).
#pragma once

#include "kernel_table.h"
#include "parallel.h"
#include "router.h"
#include "scratch.h"

namespace lfm {

// One network, or the experts of a mixture one behind another.
struct FeedForward {
  const KernelTable& kernels;
  WeightRows gate_up;  // [2 * width, hidden] of each expert; row 2m is gate row m, row 2m + 1 is up row m
  WeightRows down;     // [hidden, width] of each expert
  int64_t hidden;
  int64_t width;
  ActivationType activation;
};

struct Router {
  WeightRows weight;  // float32 [experts, hidden]
  const float* bias;  // [experts]
  RoutingRule rule;
};

// The most experts of a token: their partial results share a task's stack.
inline constexpr int64_t kMaxTopK = 256;

// y [tokens, hidden] of x [tokens, hidden].
void DenseFeedForward(const FeedForward& network, const float* x, int64_t tokens, float* y, Scratch& scratch,
                      Parallel& parallel);

// y[t] = sum over the chosen experts, in the order of choice, of weight * expert(x[t]).
void SparseFeedForward(const FeedForward& experts, const Router& router, const float* x, int64_t tokens, float* y,
                       Scratch& scratch, Parallel& parallel);

}  // namespace lfm
