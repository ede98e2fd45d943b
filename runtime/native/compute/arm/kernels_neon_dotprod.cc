// Kernels for ARMv8.2 with dot products of bytes (sdot): Cortex-A75 and later.
#include "arm/neon_table.h"

namespace lfm {
namespace {

struct DotprodDot : TokenMajorTile {
  static LFM_INLINE int32x4_t Sums8(int32x4_t start, const PartCodes& w, const PartCodes& a) {
    return vdotq_s32(vdotq_s32(start, w.first, a.first), w.second, a.second);
  }
  static LFM_INLINE int32x4_t Sums4(int32x4_t start, int8x16_t w, int8x16_t a) { return vdotq_s32(start, w, a); }

  // Vector i of each half has bytes 4i..4i+3 of the four rows: sdot with the same bytes of a token gives the four rows.
  struct TileWeights {
    int8x16_t first[4];
    int8x16_t second[4];
  };
  static LFM_INLINE void Transpose(int8x16_t a, int8x16_t b, int8x16_t c, int8x16_t d, int8x16_t (&out)[4]) {
    const int32x4_t ab_low = vzip1q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b));
    const int32x4_t ab_high = vzip2q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b));
    const int32x4_t cd_low = vzip1q_s32(vreinterpretq_s32_s8(c), vreinterpretq_s32_s8(d));
    const int32x4_t cd_high = vzip2q_s32(vreinterpretq_s32_s8(c), vreinterpretq_s32_s8(d));
    const auto join = [](int64x2_t value) { return vreinterpretq_s8_s64(value); };
    out[0] = join(vzip1q_s64(vreinterpretq_s64_s32(ab_low), vreinterpretq_s64_s32(cd_low)));
    out[1] = join(vzip2q_s64(vreinterpretq_s64_s32(ab_low), vreinterpretq_s64_s32(cd_low)));
    out[2] = join(vzip1q_s64(vreinterpretq_s64_s32(ab_high), vreinterpretq_s64_s32(cd_high)));
    out[3] = join(vzip2q_s64(vreinterpretq_s64_s32(ab_high), vreinterpretq_s64_s32(cd_high)));
  }
  static LFM_INLINE TileWeights ArrangeRows(const PartCodes (&codes)[kRowTile]) {
    TileWeights weights;
    Transpose(codes[0].first, codes[1].first, codes[2].first, codes[3].first, weights.first);
    Transpose(codes[0].second, codes[1].second, codes[2].second, codes[3].second, weights.second);
    return weights;
  }
  static LFM_INLINE int32x4_t AddHalf(int32x4_t sum, const int8x16_t (&w)[4], int8x16_t a) {
    sum = vdotq_laneq_s32(sum, w[0], a, 0);
    sum = vdotq_laneq_s32(sum, w[1], a, 1);
    sum = vdotq_laneq_s32(sum, w[2], a, 2);
    return vdotq_laneq_s32(sum, w[3], a, 3);
  }
  static LFM_INLINE void AddTilePart(const TileWeights& weights, const int8_t* a, int32x4_t (&sums)[kQuad]) {
    ForEach<kQuad>([&](auto t) LFM_INLINE_LAMBDA {
      sums[t] = AddHalf(sums[t], weights.first, vld1q_s8(a + t * kPart));
      sums[t] = AddHalf(sums[t], weights.second, vld1q_s8(a + t * kPart + 16));
    });
  }
};

}  // namespace

const KernelTable* NeonDotprodKernels() {
  static constexpr KernelTable table = MakeTable<DotprodDot>("dotprod");
  return &table;
}

}  // namespace lfm
