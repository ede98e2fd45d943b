// exp for the weights of attention, in fixed arithmetic: the scalar form of ExpBelowZero(Lanes) in attention_loops.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "fused_multiply_add.h"

// Each instruction set's file compiles its own copy.
namespace lfm {
namespace {

// x = n ln2 + r with |r| <= ln2 / 2; exp(r) by its series to the 7th power, ln2 in two parts so that r is exact.
struct ExpConstants {
  static constexpr float kLeast = -86.0f;  // exp is less than 2^-124 below, and n is at least -125 above
  static constexpr float kLog2E = 1.44269504f;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: added, the nearest integer is in the low mantissa bits
  static constexpr float kMinusLn2High = -0.693359375f;
  static constexpr float kMinusLn2Low = 2.12194440e-4f;
  static constexpr int kTerms = 8;
  static constexpr float kSeries[kTerms] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
};

// exp(x) for x <= 0 within 2 units in the last place, 0 below -86; NaN gives NaN.
inline float ExpBelowZero(float x) {
  using C = ExpConstants;
  const float clamped = C::kLeast > x ? C::kLeast : x;
  const float shifted = FusedMultiplyAdd(clamped, C::kLog2E, C::kRound), n = shifted - C::kRound;
  const float r = FusedMultiplyAdd(n, C::kMinusLn2Low, FusedMultiplyAdd(n, C::kMinusLn2High, clamped));
  float p = C::kSeries[0];
  for (int i = 1; i < C::kTerms; ++i) p = FusedMultiplyAdd(p, r, C::kSeries[i]);
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return x < C::kLeast ? 0.0f : p * power;
}

}  // namespace
}  // namespace lfm
