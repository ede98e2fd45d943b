// Splits a fused projection into query, key and value heads, and normalizes queries and keys per head.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace lfm {

struct HeadNorm {
  int64_t tokens;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  float epsilon;
  const float* qkv;       // [tokens, (heads + 2 * kv_heads) * head_dim]: q, k, v
  const float* q_weight;  // [head_dim]
  const float* k_weight;  // [head_dim]
  float* q;               // [tokens, heads * head_dim]
  float* k;               // [tokens, kv_heads * head_dim]
  float* v;               // [tokens, kv_heads * head_dim]
};

// q, k = head / sqrt(mean(head^2) + epsilon) * weight; v is copied.
void RunHeadNorm(const HeadNorm& norm, Parallel& parallel);

}  // namespace lfm
