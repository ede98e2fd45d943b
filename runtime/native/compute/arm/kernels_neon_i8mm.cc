// Kernels for ARM CPUs with products of byte matrices (smmla, two rows by two tokens): Cortex-A710, X2 and later.
#include "arm/neon_table.h"

namespace lfm {
namespace {

// Vector 2p + h of the tile order holds rows r = 2h and r + 1 of tokens t = 2p and t + 1: (r, t), (r, t + 1),
// (r + 1, t), (r + 1, t + 1).
struct I8mmDot {
  static LFM_INLINE int32x4_t Sums8(int32x4_t start, const PartCodes& w, const PartCodes& a) {
    return vdotq_s32(vdotq_s32(start, w.first, a.first), w.second, a.second);
  }
  static LFM_INLINE int32x4_t Sums4(int32x4_t start, int8x16_t w, int8x16_t a) { return vdotq_s32(start, w, a); }

  // Quarters of 8 bytes of two tokens stand side by side, as smmla takes them.
  static LFM_INLINE void StoreTilePart(int8_t* target, int t, const PartCodes& codes) {
    int8_t* pair = target + t / 2 * 2 * kPart + t % 2 * 8;
    vst1_s8(pair, vget_low_s8(codes.first));
    vst1_s8(pair + 16, vget_high_s8(codes.first));
    vst1_s8(pair + 32, vget_low_s8(codes.second));
    vst1_s8(pair + 48, vget_high_s8(codes.second));
  }

  // The same of two pairs of rows.
  struct TileWeights {
    int8x16_t pairs[2][4];
  };
  static LFM_INLINE void Pair(int8x16_t a, int8x16_t b, int8x16_t* low, int8x16_t* high) {
    *low = vreinterpretq_s8_s64(vzip1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
    *high = vreinterpretq_s8_s64(vzip2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
  }
  static LFM_INLINE TileWeights ArrangeRows(const PartCodes (&codes)[kRowTile]) {
    TileWeights weights;
    ForEach<2>([&](auto h) LFM_INLINE_LAMBDA {
      Pair(codes[2 * h].first, codes[2 * h + 1].first, &weights.pairs[h][0], &weights.pairs[h][1]);
      Pair(codes[2 * h].second, codes[2 * h + 1].second, &weights.pairs[h][2], &weights.pairs[h][3]);
    });
    return weights;
  }
  static LFM_INLINE void AddTilePart(const TileWeights& weights, const int8_t* a, int32x4_t (&sums)[kQuad]) {
    ForEach<8>([&](auto index) LFM_INLINE_LAMBDA {
      constexpr int kPair = index / 4, kQuarter = index % 4;
      const int8x16_t tokens = vld1q_s8(a + kPair * 2 * kPart + kQuarter * 16);
      sums[2 * kPair] = vmmlaq_s32(sums[2 * kPair], weights.pairs[0][kQuarter], tokens);
      sums[2 * kPair + 1] = vmmlaq_s32(sums[2 * kPair + 1], weights.pairs[1][kQuarter], tokens);
    });
  }

  template <int kVector>
  static LFM_INLINE float32x4_t SpreadRows(float32x4_t values) {
    return kVector % 2 == 0 ? vzip1q_f32(values, values) : vzip2q_f32(values, values);
  }
  template <int kVector>
  static LFM_INLINE float32x4_t SpreadTokens(float32x4_t values) {
    return vreinterpretq_f32_f64(vdupq_laneq_f64(vreinterpretq_f64_f32(values), kVector / 2));
  }
  static LFM_INLINE void RowsOfTokens(const float32x4_t (&totals)[kQuad], float32x4_t (&outputs)[kQuad]) {
    ForEach<2>([&](auto p) LFM_INLINE_LAMBDA {
      outputs[2 * p] = vuzp1q_f32(totals[2 * p], totals[2 * p + 1]);
      outputs[2 * p + 1] = vuzp2q_f32(totals[2 * p], totals[2 * p + 1]);
    });
  }
};

}  // namespace

const KernelTable* NeonI8mmKernels() {
  static constexpr KernelTable table = MakeTable<I8mmDot>("i8mm");
  return &table;
}

}  // namespace lfm
