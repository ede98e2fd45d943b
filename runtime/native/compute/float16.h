// IEEE 754 half precision to float32, exactly, by bit operations: the same on every machine.
#pragma once

#include <cstdint>
#include <cstring>

// `static`: files compiled for different instruction sets include this, and the linker must not merge their copies.
namespace lfm {

static inline float BitsToFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

static inline uint32_t FloatToBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

static inline float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return BitsToFloat(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);  // infinity, NaN
  if (magnitude >= 0x0400u) return BitsToFloat(sign | ((magnitude << 13) + 0x38000000u));
  // Subnormal: magnitude * 2^-24 is exact in float32.
  const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
  return sign ? -value : value;
}

}  // namespace lfm
