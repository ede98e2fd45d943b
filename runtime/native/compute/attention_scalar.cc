// Attention in plain C++: the definition that every instruction set gives the bits of.
#include <cstdint>
#include <cstring>

#include "fused_multiply_add.h"

#define LFM_INLINE inline

namespace lfm {
namespace {

struct Lanes {
  float values[16];

  static Lanes Zero() { return {}; }
  static Lanes Load(const float* source) {
    Lanes lanes;
    for (int i = 0; i < 16; ++i) lanes.values[i] = source[i];
    return lanes;
  }
  static Lanes Broadcast(const float* source) {
    Lanes lanes;
    for (float& value : lanes.values) value = *source;
    return lanes;
  }
  static Lanes Fill(float value) { return Broadcast(&value); }
  template <class Operation>
  static Lanes Each(const Operation& operation) {
    Lanes lanes;
    for (int i = 0; i < 16; ++i) lanes.values[i] = operation(i);
    return lanes;
  }
  static Lanes MultiplyAdd(const Lanes& a, const Lanes& b, const Lanes& c) {
    return Each([&](int i) { return FusedMultiplyAdd(a.values[i], b.values[i], c.values[i]); });
  }
  static Lanes Add(const Lanes& a, const Lanes& b) {
    return Each([&](int i) { return a.values[i] + b.values[i]; });
  }
  static Lanes Subtract(const Lanes& a, const Lanes& b) {
    return Each([&](int i) { return a.values[i] - b.values[i]; });
  }
  static Lanes Multiply(const Lanes& a, const Lanes& b) {
    return Each([&](int i) { return a.values[i] * b.values[i]; });
  }
  static Lanes Larger(const Lanes& a, const Lanes& b) {
    return Each([&](int i) { return a.values[i] > b.values[i] ? a.values[i] : b.values[i]; });
  }
  static Lanes PowerOfTwo(const Lanes& x) {
    return Each([&](int i) {
      uint32_t bits;
      std::memcpy(&bits, &x.values[i], sizeof(bits));
      bits = (bits + 127) << 23;
      float power;
      std::memcpy(&power, &bits, sizeof(power));
      return power;
    });
  }
  static Lanes ZeroBelow(const Lanes& x, const Lanes& limit, const Lanes& y) {
    return Each([&](int i) { return x.values[i] < limit.values[i] ? 0.0f : y.values[i]; });
  }
  template <class Operation>
  float Reduce(const Operation& operation) const {
    Lanes lanes = *this;
    for (int half = 8; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lanes.values[i] = operation(lanes.values[i], lanes.values[i + half]);
    }
    return lanes.values[0];
  }
  float Sum() const {
    return Reduce([](float a, float b) { return a + b; });
  }
  float Largest() const {
    return Reduce([](float a, float b) { return b > a ? b : a; });
  }
  void Store(float* target) const {
    for (int i = 0; i < 16; ++i) target[i] = values[i];
  }
};

constexpr int kTileVectors = 1;

void Transpose16(const float* rows, int64_t stride, float* out, int64_t out_stride) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) out[j * out_stride + i] = rows[i * stride + j];
  }
}

}  // namespace
}  // namespace lfm

#include "attention_loops.h"

namespace lfm {

extern const AttentionKernels kAttentionScalar;
const AttentionKernels kAttentionScalar = {"scalar", Attend};

}  // namespace lfm
