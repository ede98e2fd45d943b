// Kernels for every ARM64 CPU: products of bytes by widening multiplies.
#include "arm/neon_float.h"
#include "arm/neon_table.h"

namespace lfm {
namespace {

struct NeonDot : TokenMajorTile {
  // 16-bit sums hold 4 products of codes 0..15 with activations up to 127, or 2 of codes -128..127.
  static LFM_INLINE int32x4_t Sums8(int32x4_t start, const PartCodes& w, const PartCodes& a) {
    const int16x8_t low =
        vmlal_s8(vmull_s8(vget_low_s8(w.first), vget_low_s8(a.first)), vget_low_s8(w.second), vget_low_s8(a.second));
    const int16x8_t high = vmlal_high_s8(vmull_high_s8(w.first, a.first), w.second, a.second);
    return vpadalq_s16(start, vpaddq_s16(low, high));
  }
  static LFM_INLINE int32x4_t Sums4(int32x4_t start, int8x16_t w, int8x16_t a) {
    return vpadalq_s16(start, vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(a)), vmull_high_s8(w, a)));
  }

  struct TileWeights {
    PartCodes rows[kRowTile];
  };
  static LFM_INLINE TileWeights ArrangeRows(const PartCodes (&codes)[kRowTile]) {
    return {{codes[0], codes[1], codes[2], codes[3]}};
  }
  static LFM_INLINE int16x8_t PairProducts(int8x16_t w, int8x16_t a) {
    return vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(a)), w, a);
  }
  static LFM_INLINE void AddTilePart(const TileWeights& weights, const int8_t* a, int32x4_t (&sums)[kQuad]) {
    ForEach<kQuad>([&](auto t) LFM_INLINE_LAMBDA {
      const int8x16_t first = vld1q_s8(a + t * kPart), second = vld1q_s8(a + t * kPart + 16);
      int32x4_t row[kRowTile];
      ForEach<kRowTile>([&](auto r) LFM_INLINE_LAMBDA {
        row[r] = vpadalq_s16(vpaddlq_s16(PairProducts(weights.rows[r].first, first)),
                             PairProducts(weights.rows[r].second, second));
      });
      sums[t] = vaddq_s32(sums[t], vpaddq_s32(vpaddq_s32(row[0], row[1]), vpaddq_s32(row[2], row[3])));
    });
  }
};

}  // namespace

void NeonMultiplyFloats(const WeightRows& weights, int64_t row_begin, int64_t row_end, const float* packed,
                        int64_t tokens, float* y, int64_t y_stride) {
  MultiplyFloats(weights, row_begin, row_end, packed, tokens, y, y_stride);
}

const KernelTable* NeonKernels() {
  static constexpr KernelTable table = MakeTable<NeonDot>("neon");
  return &table;
}

}  // namespace lfm
