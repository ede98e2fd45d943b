// The element-wise loops for the baseline of the architecture, and the choice among all.
#include "elementwise.h"

#include <cstring>

#include "elementwise_loops.h"
#include "isa_dispatch.h"

namespace lfm {

#if defined(LFM_HAVE_ELEMENTWISE_AVX2)
extern const Elementwise kElementwiseAvx2;
#endif
#if defined(LFM_HAVE_ELEMENTWISE_AVX512)
extern const Elementwise kElementwiseAvx512;
#endif

namespace {

const Elementwise kBaseline = {"baseline", SiluMultiply, WeightedSum};

[[maybe_unused]] bool CanRun(const char* kernels) { return FindKernels(kernels) != nullptr; }

}  // namespace

const Elementwise* FindElementwise(const char* name) {
  if (std::strcmp(name, kBaseline.name) == 0) return &kBaseline;
#if defined(LFM_HAVE_ELEMENTWISE_AVX2)
  if (std::strcmp(name, "avx2") == 0 && CanRun("avx2")) return &kElementwiseAvx2;
#endif
#if defined(LFM_HAVE_ELEMENTWISE_AVX512)
  if (std::strcmp(name, "avx512") == 0 && CanRun("avx512vnni")) return &kElementwiseAvx512;
#endif
  return nullptr;
}

const Elementwise& BestElementwise() {
  static const Elementwise* const best = [] {
    for (const char* name : {"avx512", "avx2"}) {
      if (const Elementwise* found = FindElementwise(name)) return found;
    }
    return &kBaseline;
  }();
  return *best;
}

float Sigmoid(float x) {
  // ClampedExp would stop at exp(88): beyond it the result is 0, as a division by infinity gives.
  if (x < -88.0f) return 0.0f;
  return 1.0f / (1.0f + ClampedExp(-x));
}

}  // namespace lfm
