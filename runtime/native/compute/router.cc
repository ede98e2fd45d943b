// Sigmoid scores, selection with bias, normalization.
#include "router.h"

#include <cmath>

#include "elementwise.h"

namespace lfm {
namespace {

constexpr float kNormEpsilon = 1e-6f;
constexpr int32_t kNone = -1;

// Strictly before in the order of selection, indices aside.
bool Before(float a, float b) { return std::isnan(a) ? !std::isnan(b) : a > b; }

}  // namespace

void Route(const RoutingRule& rule, const float* logits, const float* bias, float* scores, int32_t* chosen,
           float* weights) {
  for (int64_t e = 0; e < rule.experts; ++e) scores[e] = Sigmoid(logits[e]) + bias[e];
  // Each choice is the first in the order among those that come after the previous choice: no expert twice.
  int32_t previous = kNone;
  for (int64_t j = 0; j < rule.top_k; ++j) {
    int32_t best = kNone;
    for (int32_t e = 0; e < rule.experts; ++e) {
      if (previous != kNone &&
          (Before(scores[e], scores[previous]) || (!Before(scores[previous], scores[e]) && e <= previous))) {
        continue;
      }
      if (best == kNone || Before(scores[e], scores[best])) best = e;
    }
    chosen[j] = previous = best;
  }
  float sum = 0;
  for (int64_t j = 0; j < rule.top_k; ++j) {
    weights[j] = Sigmoid(logits[chosen[j]]);
    sum += weights[j];
  }
  const float factor = rule.normalize ? rule.scaling / (sum + kNormEpsilon) : rule.scaling;
  for (int64_t j = 0; j < rule.top_k; ++j) weights[j] *= factor;
}

}  // namespace lfm
