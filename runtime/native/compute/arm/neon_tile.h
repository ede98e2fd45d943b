// Tile order on ARM (prefill): four rows against 4 or 8 tokens, one float accumulator per output, in registers.
#pragma once

#include "arm/neon_activations.h"

namespace lfm {
namespace {

constexpr int kMaxTileQuads = 2;   // 8 tokens: 8 accumulators, 8 sums, 8 vectors of weights of 32 registers
constexpr int kTileRowBlock = 64;  // rows that meet all tokens before the next rows do: about 72 KB of int4 at K = 2048

// One value of each of the four rows, in a vector.
template <typename Format>
LFM_INLINE float32x4_t RowScales(const RowPointers (&rows)[kRowTile], int64_t block) {
  const int64_t offset = block * Format::kScaleBytes;
  if constexpr (Format::kHalfScales) {
    const uint16_t halves[4] = {
        LoadUnaligned<uint16_t>(rows[0].scales + offset), LoadUnaligned<uint16_t>(rows[1].scales + offset),
        LoadUnaligned<uint16_t>(rows[2].scales + offset), LoadUnaligned<uint16_t>(rows[3].scales + offset)};
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves)));
  } else {
    const float floats[4] = {
        LoadUnaligned<float>(rows[0].scales + offset), LoadUnaligned<float>(rows[1].scales + offset),
        LoadUnaligned<float>(rows[2].scales + offset), LoadUnaligned<float>(rows[3].scales + offset)};
    return vld1q_f32(floats);
  }
}

// Codes of one part of four rows, less the zero points for int4; int8 keeps code - 128 and is corrected by sums.
template <typename Format>
LFM_INLINE void LoadRowParts(const RowPointers (&rows)[kRowTile], int64_t block, int part,
                             PartCodes (&codes)[kRowTile]) {
  constexpr int kBlockBytes = Format::kBlockParts * Format::kPartBytes;
  ForEach<kRowTile>([&](auto r) LFM_INLINE_LAMBDA {
    const PartCodes loaded = LoadPart<Format>(rows[r].codes + block * kBlockBytes + part * Format::kPartBytes);
    if constexpr (Format::kBits == 4) {
      const int8x16_t zero_point = vdupq_n_s8(static_cast<int8_t>(ZeroPointAt<Format>(rows[r].zero_points, block)));
      codes[r] = {vsubq_s8(loaded.first, zero_point), vsubq_s8(loaded.second, zero_point)};
    } else {
      codes[r] = loaded;
    }
  });
}

// sums += what the zero points of int8 rows add, beyond the 128 that LoadPart took off.
template <typename Dot, typename Format>
LFM_INLINE void CorrectSums(const RowPointers (&rows)[kRowTile], int64_t block, float32x4_t negative_token_sums,
                            int32x4_t (&sums)[kQuad]) {
  const int32_t values[kRowTile] = {
      CodeOffset<Format>(rows[0].zero_points, block), CodeOffset<Format>(rows[1].zero_points, block),
      CodeOffset<Format>(rows[2].zero_points, block), CodeOffset<Format>(rows[3].zero_points, block)};
  const float32x4_t offsets = vreinterpretq_f32_s32(vld1q_s32(values));
  ForEach<kQuad>([&](auto i) LFM_INLINE_LAMBDA {
    const int32x4_t row_offsets = vreinterpretq_s32_f32(Dot::template SpreadRows<i>(offsets));
    const int32x4_t token_sums = vreinterpretq_s32_f32(Dot::template SpreadTokens<i>(negative_token_sums));
    sums[i] = vmlaq_s32(sums[i], row_offsets, token_sums);
  });
}

// Four rows with kQuads quads of tokens; `outputs` per token.
template <typename Dot, typename Format, int kQuads>
LFM_INLINE void MultiplyTile(const RowPointers (&four_rows)[kRowTile], int64_t blocks, const uint8_t* quads,
                             int64_t quad_bytes, float32x4_t (&outputs)[kQuads][kQuad]) {
  const RowPointers rows[kRowTile] = {four_rows[0], four_rows[1], four_rows[2], four_rows[3]};
  float32x4_t totals[kQuads][kQuad];
  ForEach<kQuads * kQuad>([&](auto i) LFM_INLINE_LAMBDA { totals[i / kQuad][i % kQuad] = vdupq_n_f32(0.0f); });
  for (int64_t block = 0; block < blocks; ++block, quads += TileBlockBytes(Format::kBlock)) {
    int32x4_t sums[kQuads][kQuad];
    ForEach<kQuads * kQuad>([&](auto i) LFM_INLINE_LAMBDA { sums[i / kQuad][i % kQuad] = vdupq_n_s32(kSumBias); });
    for (int part = 0; part < Format::kBlockParts; ++part) {
      PartCodes codes[kRowTile];
      LoadRowParts<Format>(rows, block, part, codes);
      const typename Dot::TileWeights tile_weights = Dot::ArrangeRows(codes);
      ForEach<kQuads>([&](auto q) LFM_INLINE_LAMBDA {
        const uint8_t* part_codes = quads + q * quad_bytes + part * kQuad * kPart;
        Dot::AddTilePart(tile_weights, reinterpret_cast<const int8_t*>(part_codes), sums[q]);
      });
    }
    const float32x4_t row_scales = RowScales<Format>(rows, block);
    ForEach<kQuads>([&](auto q) LFM_INLINE_LAMBDA {
      const uint8_t* tail = quads + q * quad_bytes + kQuad * Format::kBlock;
      if constexpr (Format::kBits == 8 && Format::kZeroPoints) {
        CorrectSums<Dot, Format>(rows, block, vld1q_f32(reinterpret_cast<const float*>(tail)), sums[q]);
      }
      const float32x4_t token_scales = vld1q_f32(reinterpret_cast<const float*>(tail + 16));
      ForEach<kQuad>([&](auto i) LFM_INLINE_LAMBDA {
        const float32x4_t scale =
            vmulq_f32(Dot::template SpreadRows<i>(row_scales), Dot::template SpreadTokens<i>(token_scales));
        totals[q][i] = vfmaq_f32(totals[q][i], FloatSums(sums[q][i]), scale);
      });
    });
  }
  ForEach<kQuads>([&](auto q) LFM_INLINE_LAMBDA { Dot::RowsOfTokens(totals[q], outputs[q]); });
}

// Products of up to four rows with the tokens of kQuads quads from token `t` on.
template <typename Dot, typename Format, int kQuads>
void StoreTile(const WeightRows& weights, const RowPointers (&rows)[kRowTile], int64_t row_count, const uint8_t* packed,
               int64_t t, int64_t tokens, float* y, int64_t y_stride) {
  float32x4_t outputs[kQuads][kQuad];
  const int64_t quad_bytes = QuadBytes(weights);
  MultiplyTile<Dot, Format, kQuads>(rows, weights.blocks, packed + t / kQuad * quad_bytes, quad_bytes, outputs);
  for (int q = 0; q < kQuads; ++q) {
    for (int i = 0; i < kQuad && t + q * kQuad + i < tokens; ++i) {
      StoreOutputs(y + (t + q * kQuad + i) * y_stride, outputs[q][i], row_count);
    }
  }
}

// A tile of tokens (16 KB at K = 2048) stays in the first cache while the rows of a row block stream from the second.
template <typename Dot, typename Format>
void MultiplyTiles(const WeightRows& weights, int64_t row_begin, int64_t row_end, const uint8_t* packed, int64_t tokens,
                   float* y, int64_t y_stride) {
  for (int64_t first = row_begin; first < row_end; first += kTileRowBlock) {
    const int64_t last = first + kTileRowBlock < row_end ? first + kTileRowBlock : row_end;
    for (int64_t t = 0; t < tokens; t += kMaxTileQuads * kQuad) {
      for (int64_t row = first; row < last; row += kRowTile) {
        RowPointers rows[kRowTile];
        RowsAt(weights, row, last, rows);
        float* out = y + row - row_begin;
        if (tokens - t > kQuad) {
          StoreTile<Dot, Format, kMaxTileQuads>(weights, rows, last - row, packed, t, tokens, out, y_stride);
        } else {
          StoreTile<Dot, Format, 1>(weights, rows, last - row, packed, t, tokens, out, y_stride);
        }
      }
    }
  }
}

}  // namespace
}  // namespace lfm
