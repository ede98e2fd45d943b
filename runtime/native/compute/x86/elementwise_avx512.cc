// The element-wise loops for AVX512.
#include "elementwise_loops.h"

namespace lfm {

extern const Elementwise kElementwiseAvx512;
const Elementwise kElementwiseAvx512 = {"avx512", SiluMultiply, WeightedSum};

}  // namespace lfm
