// Prefill with AVX512-VNNI: tiles of 32 rows and up to 6 tokens, int32 sums per block.
//
// A register holds 16 rows; activations are broadcast, so any number of tokens fits without waste. For 32 rows and
// 512 columns at a time the codes are transposed to that form (16 KiB, half of a 32 KiB L1) and used for all tokens,
// whose sums wait in y. 2 x 6 int32 sums and 2 x 6 float sums take 24 of the 32 registers, and 12 independent
// dot products cover the instruction's latency of 4-5 cycles.
#pragma once

#include "x86_activations.h"
#include "x86_tile_rows.h"

namespace lfm {
namespace {

constexpr int kTileTokens512 = 6;
constexpr int kTileRows512 = 32;

// Unpacked weights of up to 32 rows and 512 columns. Per block and register group of 16 rows.
struct TileWeights512 {
  uint8_t codes[kTileRows512 * kChunkColumns];  // [block][dword][group][16 rows][4 codes]
  float scales[kChunkBlocks * kTileRows512];    // [block][group][16 rows]
  int32_t zero_points[kChunkBlocks * kTileRows512];
};

// 16 bytes of 16 rows as 4 registers: register d holds dword d of each row.
LFM_INLINE void TransposeDwords(const RowBytes& source, int bytes, __m512i (&dwords)[4]) {
  __m512i lines[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    __m512i line = _mm512_castsi128_si512(Load16(source, i, bytes));
    line = _mm512_inserti32x4(line, Load16(source, i + 4, bytes), 1);
    line = _mm512_inserti32x4(line, Load16(source, i + 8, bytes), 2);
    lines[i] = _mm512_inserti32x4(line, Load16(source, i + 12, bytes), 3);
  }
  const __m512i low01 = _mm512_unpacklo_epi32(lines[0], lines[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(lines[2], lines[3]);
  const __m512i high01 = _mm512_unpackhi_epi32(lines[0], lines[1]);
  const __m512i high23 = _mm512_unpackhi_epi32(lines[2], lines[3]);
  dwords[0] = _mm512_unpacklo_epi64(low01, low23);
  dwords[1] = _mm512_unpackhi_epi64(low01, low23);
  dwords[2] = _mm512_unpacklo_epi64(high01, high23);
  dwords[3] = _mm512_unpackhi_epi64(high01, high23);
}

// Codes of `columns` columns (a multiple of 32) of 16 rows; `target` is the group's first register.
template <int kBits>
void UnpackCodes512(const RowBytes& source, int columns, int groups, uint8_t* target, NextRows* next) {
  const __m512i nibble = _mm512_set1_epi8(15);
  const int64_t step = groups * 64;
  RowBytes at = source;
  for (int bytes = columns * kBits / 8; bytes > 0; bytes -= 16, at.first += 16) {
    __m512i dwords[4];
    TransposeDwords(at, 16, dwords);
    next->Fetch<16 * 16>();
#pragma GCC unroll 4
    for (int d = 0; d < 4; ++d) {
      if (kBits == 8) {
        _mm512_storeu_si512(target, dwords[d]);
      } else {
        _mm512_storeu_si512(target, _mm512_and_si512(dwords[d], nibble));
        target += step;
        _mm512_storeu_si512(target, _mm512_and_si512(_mm512_srli_epi16(dwords[d], 4), nibble));
      }
      target += step;
    }
  }
}

inline void UnpackScales512(const RowBytes& source, bool half, int blocks, int groups, float* target) {
  const int per_load = half ? 8 : 4;
  RowBytes at = source;
  for (int b = 0; b < blocks; b += per_load, at.first += 16) {
    const int left = blocks - b < per_load ? blocks - b : per_load;
    __m512i dwords[4];
    TransposeDwords(at, left * 16 / per_load, dwords);
    for (int i = 0; i < left; ++i, target += groups * 16) {
      const __m512i bits = half ? _mm512_srlv_epi32(dwords[i / 2], _mm512_set1_epi32(i % 2 * 16)) : dwords[i];
      _mm512_storeu_ps(target, half ? _mm512_cvtph_ps(_mm512_cvtepi32_epi16(bits)) : _mm512_castsi512_ps(bits));
    }
  }
}

// The first block is a multiple of 4, so that its zero point starts a byte.
template <int kBits>
void UnpackZeroPoints512(const RowBytes& source, int blocks, int groups, int32_t* target) {
  constexpr int kPerDword = 32 / kBits;
  __m512i dwords[4];
  TransposeDwords(source, (blocks * kBits + 7) / 8, dwords);
  for (int b = 0; b < blocks; ++b, target += groups * 16) {
    const __m512i bits = _mm512_srlv_epi32(dwords[b / kPerDword], _mm512_set1_epi32(b % kPerDword * kBits));
    _mm512_storeu_si512(target, _mm512_and_si512(bits, _mm512_set1_epi32((1 << kBits) - 1)));
  }
}

// Adds `blocks` blocks of kGroups x 16 rows and kTokens tokens to the sums in y (to zero for the first ones).
template <int kGroups, int kTokens, bool kZeroPoints>
void AddTile512(const TileWeights512& weights, int blocks, int block_size, const uint8_t* activations, bool first,
                const __mmask16 (&masks)[2], float* y, int64_t y_stride) {
  __m512 sums[kTokens][kGroups];
#pragma GCC unroll 6
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      sums[t][g] = first ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(masks[g], y + t * y_stride + g * 16);
    }
  }
  const uint8_t* codes = weights.codes;
  const float* scales = weights.scales;
  const int32_t* zero_points = weights.zero_points;
  const int64_t code_bytes = static_cast<int64_t>(block_size) * kTokens;
  for (int b = 0; b < blocks; ++b) {
    const uint8_t* code_end = activations + code_bytes;
    __m512i dots[kTokens][kGroups];
#pragma GCC unroll 6
    for (int t = 0; t < kTokens; ++t) {
      const __m512i correction = _mm512_set1_epi32(LoadUnaligned<int32_t>(code_end + t * 4));
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        dots[t][g] = kZeroPoints ? _mm512_madd_epi16(_mm512_loadu_si512(zero_points + g * 16), correction) : correction;
      }
    }
    for (; activations != code_end; activations += kTokens * 4, codes += kGroups * 64) {
      __m512i rows[kGroups];
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) rows[g] = _mm512_loadu_si512(codes + g * 64);
#pragma GCC unroll 6
      for (int t = 0; t < kTokens; ++t) {
        const __m512i token = _mm512_set1_epi32(LoadUnaligned<int32_t>(activations + t * 4));
#pragma GCC unroll 2
        for (int g = 0; g < kGroups; ++g) dots[t][g] = _mm512_dpbusd_epi32(dots[t][g], rows[g], token);
      }
    }
    activations += kTokens * 4;
#pragma GCC unroll 6
    for (int t = 0; t < kTokens; ++t) {
      const __m512 token_scale = _mm512_set1_ps(LoadUnaligned<float>(activations + t * 4));
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        const __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(scales + g * 16), token_scale);
        sums[t][g] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t][g]), scale, sums[t][g]);
      }
    }
    activations += kTokens * 4;
    scales += kGroups * 16;
    zero_points += kGroups * 16;
  }
#pragma GCC unroll 6
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) _mm512_mask_storeu_ps(y + t * y_stride + g * 16, masks[g], sums[t][g]);
  }
}

template <int kGroups, bool kZeroPoints>
LFM_INLINE void AddTokens512(const TileWeights512& weights, const WeightRows& shape, int64_t first_block, int blocks,
                             const uint8_t* packed, int64_t tokens, int64_t rows, float* y, int64_t y_stride) {
  const TokenTiles<kTileTokens512> tiles(tokens);
  const int block_size = shape.block_size;
  __mmask16 masks[2] = {0xffff, 0xffff};
  if (rows < kGroups * 16) masks[kGroups - 1] = static_cast<__mmask16>((1u << (rows - (kGroups - 1) * 16)) - 1);
  const bool first = first_block == 0;
  for (int64_t i = 0; i < tiles.count; ++i) {
    const int64_t begin = tiles.Begin(i);
    const int tile = tiles.Size(i);
    const uint8_t* records = packed + (begin * shape.blocks + tile * first_block) * TileBlockBytes(shape);
    float* target = y + begin * y_stride;
    switch (tile) {
      case 3:
        AddTile512<kGroups, 3, kZeroPoints>(weights, blocks, block_size, records, first, masks, target, y_stride);
        break;
      case 4:
        AddTile512<kGroups, 4, kZeroPoints>(weights, blocks, block_size, records, first, masks, target, y_stride);
        break;
      case 5:
        AddTile512<kGroups, 5, kZeroPoints>(weights, blocks, block_size, records, first, masks, target, y_stride);
        break;
      default:
        AddTile512<kGroups, 6, kZeroPoints>(weights, blocks, block_size, records, first, masks, target, y_stride);
    }
  }
}

template <int kBits>
void MultiplyTiles512(const WeightRows& weights, int64_t row_begin, int64_t row_end, const uint8_t* packed,
                      int64_t tokens, float* y, int64_t y_stride) {
  const int block_size = weights.block_size;
  const int chunk_blocks = kChunkColumns / block_size;
  const int scale_bytes = weights.scales_are_float16 ? 2 : 4;
  const bool with_zero_points = weights.zero_points != nullptr;
  TileWeights512 tile;
  for (int64_t row = row_begin; row < row_end; row += kTileRows512) {
    const int rows = static_cast<int>(row_end - row < kTileRows512 ? row_end - row : kTileRows512);
    const int groups = rows > 16 ? 2 : 1;
    NextRows next(weights, row + kTileRows512);
    for (int64_t block = 0; block < weights.blocks; block += chunk_blocks) {
      const int64_t blocks_left = weights.blocks - block;
      const int blocks = static_cast<int>(blocks_left < chunk_blocks ? blocks_left : chunk_blocks);
      for (int g = 0; g < groups; ++g) {
        const RowPointers at = RowAt(weights, row + g * 16);
        const int left = rows - g * 16 < 16 ? rows - g * 16 : 16;
        UnpackCodes512<kBits>({at.codes + block * block_size * kBits / 8, weights.row_bytes, left},
                              blocks * block_size, groups, tile.codes + g * 64, &next);
        UnpackScales512({at.scales + block * scale_bytes, weights.blocks * scale_bytes, left},
                        weights.scales_are_float16, blocks, groups, tile.scales + g * 16);
        if (with_zero_points) {
          UnpackZeroPoints512<kBits>({at.zero_points + block * kBits / 8, weights.zero_point_row_bytes, left}, blocks,
                                     groups, tile.zero_points + g * 16);
        }
      }
      float* target = y + (row - row_begin);
      if (groups == 2) {
        with_zero_points
            ? AddTokens512<2, true>(tile, weights, block, blocks, packed, tokens, rows, target, y_stride)
            : AddTokens512<2, false>(tile, weights, block, blocks, packed, tokens, rows, target, y_stride);
      } else {
        with_zero_points
            ? AddTokens512<1, true>(tile, weights, block, blocks, packed, tokens, rows, target, y_stride)
            : AddTokens512<1, false>(tile, weights, block, blocks, packed, tokens, rows, target, y_stride);
      }
    }
  }
}

}  // namespace
}  // namespace lfm
