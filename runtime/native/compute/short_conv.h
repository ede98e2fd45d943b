// The double-gated short convolution over time, with its state.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace lfm {

struct ShortConv {
  int64_t batch;
  int64_t sequence;
  int64_t hidden;
  int64_t taps;         // L
  const float* bcx;     // [batch, sequence, 3 * hidden]: B, C, x
  const float* weight;  // [taps, hidden], the oldest token first
  const float* mask;    // [batch, sequence]: 0 for padding
  const float* past;    // [batch, hidden, taps]: the last columns of B * x, oldest first
  const float* bias;    // [hidden] or null
  float* y;             // [batch, sequence, hidden]; 0 at padding
  float* present;       // [batch, hidden, taps]
};

// The most taps: a task keeps that many columns on its stack.
inline constexpr int64_t kMaxTaps = 4096;

// y[t] = C[t] * (sum over j of weight[j] * u[t - (taps - 1) + j] + bias), u = B * x, and the
// past before a row's first token.
void RunShortConv(const ShortConv& conv, Parallel& parallel);

}  // namespace lfm
