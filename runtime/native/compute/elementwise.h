// Element-wise float32 loops between the products: the activation of the feed-forward, and sums of experts.
#pragma once

#include <cstdint>

namespace lfm {

// The same loops compiled for several instruction sets. They use single IEEE operations without contraction, so that
// results are equal to the last bit whichever runs.
struct Elementwise {
  const char* name;
  // gate_up [2 * count] as pairs (gate, up) → out[i] = gate / (1 + exp(-gate)) * up.
  void (*silu_multiply)(const float* gate_up, int64_t count, float* out);
  // out[i] = sum over j < terms, in order, of weights[j] * rows[j][i].
  void (*weighted_sum)(const float* const* rows, const float* weights, int64_t terms, int64_t count, float* out);
};

// The best loops for this CPU.
const Elementwise& BestElementwise();

// The loops called `name` (baseline, avx2, avx512); null where this CPU or build lacks them.
const Elementwise* FindElementwise(const char* name);

// 1 / (1 + exp(-x)) without loss for small results.
float Sigmoid(float x);

}  // namespace lfm
