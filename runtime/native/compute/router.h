// The router of a mixture of experts: which experts a token goes to, and with what weight.
#pragma once

#include <cstdint>

namespace lfm {

struct RoutingRule {
  int64_t experts;
  int64_t top_k;
  bool normalize;  // divide the chosen weights by (their sum + 1e-6)
  float scaling;   // multiplies every weight
};

// logits [experts], bias [experts] → chosen [top_k], weights [top_k].
// Experts are taken by sigmoid(logit) + bias, the greatest first; equal ones: the lower index first; NaN counts as
// greater than any number, so that it shows in the result. scores [experts] is working memory.
void Route(const RoutingRule& rule, const float* logits, const float* bias, float* scores, int32_t* chosen,
           float* weights);

}  // namespace lfm
