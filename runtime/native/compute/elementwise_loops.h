// Bodies of the element-wise loops, included once per instruction set into a namespace of that file's own.
// No function of another translation unit is called here: the compiler vectorizes each loop as a whole.

#include <cstdint>
#include <cstring>

#include "elementwise.h"

namespace {

inline float LoopBitsToFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t LoopFloatToBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// exp(x) for x in [-86, 88], clamped outside, within 2 units in the last place; NaN gives NaN.
// x = n ln2 + r with |r| <= ln2 / 2; exp(r) by its series to the 7th power, ln2 in two parts so that r is exact.
inline float ClampedExp(float x) {
  x = x < -86.0f ? -86.0f : x;
  x = x > 88.0f ? 88.0f : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // n enters the exponent field by integer addition; p is in [0.7, 1.5] and n in [-125, 127], so that
  // the field neither overflows nor reaches 0.
  return LoopBitsToFloat(LoopFloatToBits(p) + (LoopFloatToBits(shifted) << 23));
}

void SiluMultiply(const float* gate_up, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const float gate = gate_up[2 * i];
    out[i] = gate / (1.0f + ClampedExp(-gate)) * gate_up[2 * i + 1];
  }
}

void WeightedSum(const float* const* rows, const float* weights, int64_t terms, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = weights[0] * rows[0][i];
  for (int64_t j = 1; j < terms; ++j) {
    const float weight = weights[j];
    const float* row = rows[j];
    for (int64_t i = 0; i < count; ++i) out[i] = out[i] + weight * row[i];
  }
}

}  // namespace
