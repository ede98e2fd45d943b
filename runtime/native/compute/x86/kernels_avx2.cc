// Kernels for x86-64 with AVX2: which loop computes which product.
#include "kernel_table.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "x86/avx2_float.h"
#include "x86/avx2_tile.h"
#include "x86/avx2_vector.h"

namespace lfm {
namespace {

void MultiplyFloatActivations(const WeightRows& weights, int64_t row_begin, int64_t row_end, const float* packed,
                              int64_t tokens, float* y, int64_t y_stride) {
  switch (weights.type) {
    case WeightType::kFloat32:
      return MultiplyFloats256<WeightType::kFloat32>(weights, row_begin, row_end, packed, tokens, y, y_stride);
    case WeightType::kFloat16:
      return MultiplyFloats256<WeightType::kFloat16>(weights, row_begin, row_end, packed, tokens, y, y_stride);
    case WeightType::kInt8:
      return MultiplyFloats256<WeightType::kInt8>(weights, row_begin, row_end, packed, tokens, y, y_stride);
    case WeightType::kInt4:
      return MultiplyFloats256<WeightType::kInt4>(weights, row_begin, row_end, packed, tokens, y, y_stride);
  }
}

void Multiply(const WeightRows& weights, ActivationType activation, int64_t row_begin, int64_t row_end,
              const void* packed, int64_t tokens, float* y, int64_t y_stride) {
  if (row_begin >= row_end || tokens <= 0) return;
  const uint8_t* bytes = static_cast<const uint8_t*>(packed);
  if (!QuantizesActivations(weights, activation)) {
    MultiplyFloatActivations(weights, row_begin, row_end, static_cast<const float*>(packed), tokens, y, y_stride);
  } else if (tokens >= kTileTokens) {
    const auto multiply = weights.type == WeightType::kInt4 ? MultiplyTiles256<4> : MultiplyTiles256<8>;
    multiply(weights, row_begin, row_end, bytes, tokens, y, y_stride);
  } else {
    VisitFormat(weights, [&](auto format) {
      using Format = decltype(format);
      const auto multiply = tokens == 1   ? MultiplyVectors256<Format, 1>
                            : tokens == 2 ? MultiplyVectors256<Format, 2>
                                          : MultiplyVectors256<Format, 3>;
      multiply(weights, row_begin, row_end, bytes, y, y_stride);
    });
  }
}

}  // namespace

const KernelTable* Avx2Kernels() {
  static constexpr KernelTable table = {"avx2", PackedBytes, Pack<kTileTokens256>, Multiply};
  return &table;
}

}  // namespace lfm

#else

namespace lfm {
const KernelTable* Avx2Kernels() { return nullptr; }
}  // namespace lfm

#endif
