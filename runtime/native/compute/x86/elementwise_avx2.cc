// The element-wise loops for AVX2.
#include "elementwise_loops.h"

namespace lfm {

extern const Elementwise kElementwiseAvx2;
const Elementwise kElementwiseAvx2 = {"avx2", SiluMultiply, WeightedSum};

}  // namespace lfm
