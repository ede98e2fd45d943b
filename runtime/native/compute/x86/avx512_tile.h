// Prefill with AVX512-VNNI: tiles of 32 rows and up to 6 tokens, int32 sums per block.
//
// A register holds 16 rows; activations are broadcast, so any number of tokens fits without waste. For 32 rows and
// 512 columns at a time the codes are transposed to that form (16 KiB, half of a 32 KiB L1) and used for all tokens,
// whose sums wait side by side (in y, a page apart, they would fall into the same cache sets). 2 x 6 int32 sums and
// 2 x 6 float sums take 24 of the 32 registers, and 12 independent dot products cover the instruction's latency of 4-5
// cycles. On Zen 4 a block of 32 columns is bound by 8 dot products, a product of scales and an fma, which share one
// pipe: 80 % of the dot products' peak.
#pragma once

#include "x86/activations.h"
#include "x86/tile_rows.h"

namespace lfm {
namespace {

constexpr int kTileTokens512 = 6;
constexpr int kTileRows512 = 32;
constexpr int64_t kSumTiles512 = 22;  // whose sums wait at once: as many tokens as a task has (TokenChunks::kLargest)

// Unpacked weights of up to 32 rows and 512 columns, per block and register group of 16 rows, and what they add to.
struct TileWeights512 {
  uint8_t codes[kTileRows512 * kChunkColumns];  // [block][dword][group][16 rows][4 codes]
  float scales[kChunkBlocks * kTileRows512];    // [block][group][16 rows]
  int32_t zero_points[kChunkBlocks * kTileRows512];
  float waiting[kSumTiles512 * kTileTokens512 * kTileRows512];  // sums of the columns before, [token][rows]
};

// lines[i]: 16 bytes of rows i, i + 4, i + 8 and i + 12; dwords[d]: dword d of each row.
LFM_INLINE void TransposeLines(const __m512i (&lines)[4], __m512i (&dwords)[4]) {
  const __m512i low01 = _mm512_unpacklo_epi32(lines[0], lines[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(lines[2], lines[3]);
  const __m512i high01 = _mm512_unpackhi_epi32(lines[0], lines[1]);
  const __m512i high23 = _mm512_unpackhi_epi32(lines[2], lines[3]);
  dwords[0] = _mm512_unpacklo_epi64(low01, low23);
  dwords[1] = _mm512_unpackhi_epi64(low01, low23);
  dwords[2] = _mm512_unpacklo_epi64(high01, high23);
  dwords[3] = _mm512_unpackhi_epi64(high01, high23);
}

LFM_INLINE __m512i FourLanes(__m128i a, __m128i b, __m128i c, __m128i d) {
  __m512i lanes = _mm512_inserti32x4(_mm512_castsi128_si512(a), b, 1);
  lanes = _mm512_inserti32x4(lanes, c, 2);
  return _mm512_inserti32x4(lanes, d, 3);
}

// 16 bytes of up to 16 rows, of which `bytes` may be read.
LFM_INLINE void TransposeDwords(const RowBytes& source, int bytes, __m512i (&dwords)[4]) {
  __m512i lines[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    lines[i] = FourLanes(Load16(source, i, bytes), Load16(source, i + 4, bytes), Load16(source, i + 8, bytes),
                         Load16(source, i + 12, bytes));
  }
  TransposeLines(lines, dwords);
}

// 16 bytes of 16 rows.
LFM_INLINE void TransposeWholeDwords(const uint8_t* first, int64_t stride, __m512i (&dwords)[4]) {
  const auto load = [](const uint8_t* address) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(address)); };
  const uint8_t *row4 = first + 4 * stride, *row8 = first + 8 * stride, *row12 = row8 + 4 * stride;
  __m512i lines[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    lines[i] =
        FourLanes(load(first + i * stride), load(row4 + i * stride), load(row8 + i * stride), load(row12 + i * stride));
  }
  TransposeLines(lines, dwords);
}

// Stores 4 dwords of codes of 16 rows, `step` bytes apart (int4: 8 dwords); returns where the next ones go.
template <int kBits>
LFM_INLINE uint8_t* StoreCodes512(const __m512i (&dwords)[4], int64_t step, uint8_t* target) {
  const __m512i nibble = _mm512_set1_epi8(15);
#pragma GCC unroll 4
  for (int d = 0; d < 4; ++d, target += step) {
    if (kBits == 8) {
      _mm512_storeu_si512(target, dwords[d]);
    } else {
      _mm512_storeu_si512(target, _mm512_and_si512(dwords[d], nibble));
      target += step;
      _mm512_storeu_si512(target, _mm512_and_si512(_mm512_srli_epi16(dwords[d], 4), nibble));
    }
  }
  return target;
}

// Codes of `columns` columns (a multiple of 32) of 16 rows; `target` is the group's first register.
template <int kBits>
void UnpackCodes512(const RowBytes& source, int columns, int groups, uint8_t* target) {
  const int64_t step = groups * 64;
  __m512i dwords[4];
  RowBytes at = source;
  const uint8_t* const end = at.first + columns * kBits / 8;
  if (at.rows == 16) {
    for (; at.first != end; at.first += 16) {
      TransposeWholeDwords(at.first, at.stride, dwords);
      target = StoreCodes512<kBits>(dwords, step, target);
    }
  } else {
    for (; at.first != end; at.first += 16) {
      TransposeDwords(at, 16, dwords);
      target = StoreCodes512<kBits>(dwords, step, target);
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

// Where a tile's sums come from and go to, 16 rows of a token side by side.
struct TileSums512 {
  bool from_zero;
  const float* from;  // [tokens][kTileRows512]
  float* to;
  int64_t to_stride;
  __mmask16 masks[2];  // rows that exist
};

// Adds `blocks` blocks of kGroups x 16 rows and kTokens tokens to the sums.
template <int kGroups, int kTokens, bool kZeroPoints>
void AddTile512(const TileWeights512& weights, int blocks, int block_size, const uint8_t* activations,
                const TileSums512& target, NextRows* next_rows, int64_t next_lines) {
  NextRows next = *next_rows;
  __m512 sums[kTokens][kGroups];
#pragma GCC unroll 6
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      sums[t][g] = target.from_zero ? _mm512_setzero_ps() : _mm512_loadu_ps(target.from + t * kTileRows512 + g * 16);
    }
  }
  const uint8_t* codes = weights.codes;
  const float* scales = weights.scales;
  const int32_t* zero_points = weights.zero_points;
  const int64_t code_bytes = static_cast<int64_t>(block_size) * kTokens;
  for (int b = 0; b < blocks; ++b) {
    next.Fetch(next_lines);
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
    // 32 columns at a time without a loop: in one the compiler copies every sum twice a round.
    do {
#pragma GCC unroll 8
      for (int d = 0; d < 8; ++d, activations += kTokens * 4, codes += kGroups * 64) {
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
    } while (activations != code_end);
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
    for (int g = 0; g < kGroups; ++g) {
      _mm512_mask_storeu_ps(target.to + t * target.to_stride + g * 16, target.masks[g], sums[t][g]);
    }
  }
  *next_rows = next;
}

using AddTile = void (*)(const TileWeights512&, int, int, const uint8_t*, const TileSums512&, NextRows*, int64_t);

template <int kGroups, bool kZeroPoints>
AddTile AddTileOf(int tokens) {
  return tokens == 3   ? AddTile512<kGroups, 3, kZeroPoints>
         : tokens == 4 ? AddTile512<kGroups, 4, kZeroPoints>
         : tokens == 5 ? AddTile512<kGroups, 5, kZeroPoints>
                       : AddTile512<kGroups, 6, kZeroPoints>;
}

inline AddTile AddTileOf(int groups, int tokens, bool zero_points) {
  if (groups == 2) return zero_points ? AddTileOf<2, true>(tokens) : AddTileOf<2, false>(tokens);
  return zero_points ? AddTileOf<1, true>(tokens) : AddTileOf<1, false>(tokens);
}

// Blocks [first, first + count) of `rows` rows.
template <int kBits>
void UnpackTile512(const WeightRows& weights, int64_t row, int rows, int64_t first, int count, TileWeights512* tile) {
  const int scale_bytes = weights.scales_are_float16 ? 2 : 4;
  const int groups = rows > 16 ? 2 : 1;
  for (int g = 0; g < groups; ++g) {
    const RowPointers at = RowAt(weights, row + g * 16);
    const int left = rows - g * 16 < 16 ? rows - g * 16 : 16;
    UnpackCodes512<kBits>({at.codes + first * weights.block_size * kBits / 8, weights.row_bytes, left},
                          count * weights.block_size, groups, tile->codes + g * 64);
    UnpackScales512({at.scales + first * scale_bytes, weights.blocks * scale_bytes, left}, weights.scales_are_float16,
                    count, groups, tile->scales + g * 16);
    if (weights.zero_points != nullptr) {
      UnpackZeroPoints512<kBits>({at.zero_points + first * kBits / 8, weights.zero_point_row_bytes, left}, count,
                                 groups, tile->zero_points + g * 16);
    }
  }
}

template <int kBits>
void MultiplyTiles512(const WeightRows& weights, int64_t row_begin, int64_t row_end, const uint8_t* packed,
                      int64_t tokens, float* y, int64_t y_stride) {
  const int chunk_blocks = kChunkColumns / weights.block_size;
  const TokenTiles<kTileTokens512> tiles(tokens);
  CacheAligned<TileWeights512> storage;
  TileWeights512& tile = *storage.Get();
  for (int64_t row = row_begin; row < row_end; row += kTileRows512) {
    const int rows = static_cast<int>(row_end - row < kTileRows512 ? row_end - row : kTileRows512);
    const int groups = rows > 16 ? 2 : 1;
    TileSums512 sums{true, nullptr, nullptr, 0, {0xffff, 0xffff}};
    sums.masks[groups - 1] = static_cast<__mmask16>(0xffffu >> (groups * 16 - rows));
    for (int64_t first_tile = 0; first_tile < tiles.count; first_tile += kSumTiles512) {
      const int64_t end_tile = tiles.count - first_tile < kSumTiles512 ? tiles.count : first_tile + kSumTiles512;
      NextRows next(weights, row + kTileRows512, kTileRows512);
      const int64_t next_lines = next.lines / ((end_tile - first_tile) * weights.blocks) + 1;
      for (int64_t block = 0; block < weights.blocks; block += chunk_blocks) {
        const int64_t left = weights.blocks - block;
        const int blocks = static_cast<int>(left < chunk_blocks ? left : chunk_blocks);
        UnpackTile512<kBits>(weights, row, rows, block, blocks, &tile);
        for (int64_t i = first_tile; i < end_tile; ++i) {
          const int64_t token = tiles.Begin(i);
          const int size = tiles.Size(i);
          float* held = tile.waiting + (token - tiles.Begin(first_tile)) * kTileRows512;
          sums.from_zero = block == 0;
          sums.from = held;
          sums.to = left <= chunk_blocks ? y + token * y_stride + (row - row_begin) : held;
          sums.to_stride = left <= chunk_blocks ? y_stride : kTileRows512;
          AddTileOf(groups, size, weights.zero_points != nullptr)(
              tile, blocks, weights.block_size, packed + TileOffset(weights, tokens, token, size, block), sums, &next,
              next_lines);
        }
      }
    }
  }
}

}  // namespace
}  // namespace lfm
