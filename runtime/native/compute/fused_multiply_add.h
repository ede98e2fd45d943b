// a * b + c in float32 with a single rounding, on every C library: that of mingw-w64 rounds twice.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace lfm {

// The product is exact in double. The sum is rounded to odd, so that the rounding to float32 sees on which side of
// every tie the exact sum lies (double has more than two bits beyond float32, subnormal results included).
static inline float FusedMultiplyAdd(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__) || !defined(__MINGW32__)
  return std::fma(a, b, c);
#else
  const double product = static_cast<double>(a) * b, addend = c;
  double sum = product + addend;
  const double part = sum - product;
  const double rest = (product - (sum - part)) + (addend - part);  // what rounding took from the sum; NaN beyond range
  uint64_t bits;
  std::memcpy(&bits, &sum, sizeof(bits));
  if ((rest < 0 || rest > 0) && (bits & 1) == 0) {
    bits += (rest > 0) == (sum > 0) ? 1 : UINT64_MAX;
    std::memcpy(&sum, &bits, sizeof(bits));
  }
  return static_cast<float>(sum);
#endif
}

}  // namespace lfm
