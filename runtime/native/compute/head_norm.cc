// Root-mean-square normalization of single heads.
#include "head_norm.h"

#include <algorithm>
#include <cmath>

namespace lfm {
namespace {

void NormalizeHead(const float* head, const float* weight, int64_t size, float epsilon, float* out) {
  // Fixed lanes: the compiler vectorizes them, and the sum is the same on every machine.
  constexpr int kLanes = 16;
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += head[i + lane] * head[i + lane];
  }
  for (int lane = 0; i + lane < size; ++lane) lanes[lane] += head[i + lane] * head[i + lane];
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  const float inverse = 1.0f / std::sqrt(lanes[0] / static_cast<float>(size) + epsilon);
  for (i = 0; i < size; ++i) out[i] = head[i] * inverse * weight[i];
}

}  // namespace

void RunHeadNorm(const HeadNorm& norm, Parallel& parallel) {
  const int64_t size = norm.head_dim, q_size = norm.heads * size, kv_size = norm.kv_heads * size;
  const auto run = [&](int64_t t) {
    const float* source = norm.qkv + t * (q_size + 2 * kv_size);
    for (int64_t h = 0; h < norm.heads; ++h) {
      NormalizeHead(source + h * size, norm.q_weight, size, norm.epsilon, norm.q + t * q_size + h * size);
    }
    for (int64_t h = 0; h < norm.kv_heads; ++h) {
      NormalizeHead(source + q_size + h * size, norm.k_weight, size, norm.epsilon, norm.k + t * kv_size + h * size);
    }
    std::copy_n(source + q_size + kv_size, kv_size, norm.v + t * kv_size);
  };
  // A few microseconds of work for each task.
  constexpr int64_t kTokensPerTask = 4;
  parallel.For((norm.tokens + kTokensPerTask - 1) / kTokensPerTask, [&](int64_t task) {
    const int64_t end = std::min(norm.tokens, (task + 1) * kTokensPerTask);
    for (int64_t t = task * kTokensPerTask; t < end; ++t) run(t);
  });
}

}  // namespace lfm
