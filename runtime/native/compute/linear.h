// A linear layer: activations times the transposed weights, plus bias.
#pragma once

#include "kernel_table.h"
#include "parallel.h"
#include "scratch.h"

namespace lfm {

// The packed activations of `tokens` tokens, chunk after chunk.
class PackedTokens {
 public:
  PackedTokens(const KernelTable& kernels, const WeightRows& weights, ActivationType activation, int64_t tokens);

  int64_t Bytes() const { return bytes_; }
  int64_t Offset(int64_t chunk) const { return chunk * chunk_bytes_; }

 private:
  int64_t chunk_bytes_;
  int64_t bytes_;
};

// y[t, r] = sum over k of weight[r, k] * x[t, k] + bias[r]; x [tokens, columns], bias [rows] or null, y [tokens, rows].
void Linear(const KernelTable& kernels, const WeightRows& weights, int64_t rows, ActivationType activation,
            const float* x, int64_t tokens, const float* bias, float* y, Scratch::Slot packed_slot, Scratch& scratch,
            Parallel& parallel);

}  // namespace lfm
