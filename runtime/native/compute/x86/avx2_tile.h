// Prefill with AVX2: tiles of 16 rows and up to 4 tokens, exact integer sums per block.
//
// As with AVX-512, a register holds one dword of codes of each of its (here 8) rows, and activations are broadcast.
// int4: 8 products of two nibbles with two activations stay below 8 * 3810 < 2^15, so that 32 columns are summed in
//   int16 before they are widened. int8: codes are shifted and multiplied as in the vector order (avx2_vector.h).
// 2 x 4 int16 sums leave registers for two of weights and the broadcast; the float sums are touched once per block.
#pragma once

#include "x86/avx2_vector.h"
#include "x86/tile_rows.h"

namespace lfm {
namespace {

constexpr int kTileTokens256 = 4;
constexpr int kTileRows256 = 16;

// Unpacked weights of up to 16 rows and 512 columns. Per block and register group of 8 rows.
struct TileWeights256 {
  uint8_t codes[kTileRows256 * kChunkColumns];  // [block][dword][group][8 rows][4 codes], int8 less 128
  float scales[kChunkBlocks * kTileRows256];    // [block][group][8 rows]
  int32_t zero_points[kChunkBlocks * kTileRows256];
};

// 16 bytes of 8 rows as 4 registers: register d holds dword d of each row.
LFM_INLINE void TransposeDwords(const RowBytes& source, int bytes, __m256i (&dwords)[4]) {
  __m256i lines[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) lines[i] = _mm256_set_m128i(Load16(source, i + 4, bytes), Load16(source, i, bytes));
  const __m256i low01 = _mm256_unpacklo_epi32(lines[0], lines[1]);
  const __m256i low23 = _mm256_unpacklo_epi32(lines[2], lines[3]);
  const __m256i high01 = _mm256_unpackhi_epi32(lines[0], lines[1]);
  const __m256i high23 = _mm256_unpackhi_epi32(lines[2], lines[3]);
  dwords[0] = _mm256_unpacklo_epi64(low01, low23);
  dwords[1] = _mm256_unpackhi_epi64(low01, low23);
  dwords[2] = _mm256_unpacklo_epi64(high01, high23);
  dwords[3] = _mm256_unpackhi_epi64(high01, high23);
}

// Codes of `columns` columns (a multiple of 32) of 8 rows; `target` is the group's first register.
template <int kBits>
void UnpackCodes256(const RowBytes& source, int columns, int groups, uint8_t* target) {
  const __m256i nibble = _mm256_set1_epi8(15);
  const int64_t step = groups * 32;
  RowBytes at = source;
  for (int bytes = columns * kBits / 8; bytes > 0; bytes -= 16, at.first += 16) {
    __m256i dwords[4];
    TransposeDwords(at, 16, dwords);
#pragma GCC unroll 4
    for (int d = 0; d < 4; ++d) {
      if (kBits == 8) {
        Store256(target, _mm256_xor_si256(dwords[d], _mm256_set1_epi8(-128)));
      } else {
        Store256(target, _mm256_and_si256(dwords[d], nibble));
        target += step;
        Store256(target, _mm256_and_si256(_mm256_srli_epi16(dwords[d], 4), nibble));
      }
      target += step;
    }
  }
}

inline void UnpackScales256(const RowBytes& source, bool half, int blocks, int groups, float* target) {
  const int per_load = half ? 8 : 4;
  RowBytes at = source;
  for (int b = 0; b < blocks; b += per_load, at.first += 16) {
    const int left = blocks - b < per_load ? blocks - b : per_load;
    __m256i dwords[4];
    TransposeDwords(at, left * 16 / per_load, dwords);
    for (int i = 0; i < left; ++i, target += groups * 8) {
      __m256 scales = _mm256_castsi256_ps(dwords[i % 4]);
      if (half) {
        const __m256i low = _mm256_and_si256(_mm256_srlv_epi32(dwords[i / 2], _mm256_set1_epi32(i % 2 * 16)),
                                             _mm256_set1_epi32(0xffff));
        scales = _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)));
      }
      _mm256_storeu_ps(target, scales);
    }
  }
}

// Zero points less what the codes are shifted by. The first block is a multiple of 4: its zero point starts a byte.
template <int kBits>
void UnpackZeroPoints256(const RowBytes& source, int blocks, int groups, int32_t* target) {
  constexpr int kPerDword = 32 / kBits;
  const __m256i mask = _mm256_set1_epi32((1 << kBits) - 1);
  const __m256i shift = _mm256_set1_epi32(kBits == 8 ? 128 : 0);
  __m256i dwords[4];
  TransposeDwords(source, (blocks * kBits + 7) / 8, dwords);
  for (int b = 0; b < blocks; ++b, target += groups * 8) {
    const __m256i bits = _mm256_srlv_epi32(dwords[b / kPerDword], _mm256_set1_epi32(b % kPerDword * kBits));
    const __m256i points = _mm256_sub_epi32(_mm256_and_si256(bits, mask), shift);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), points);
  }
}

// A sum that the compiler keeps in memory between two additions waits for the store each time: a third of the speed.
LFM_INLINE void KeepInRegister(__m256i* sum) { __asm__("" : "+x"(*sum)); }

// Sums of 32 columns: 8 dwords of codes and activations are read.
template <int kBits, int kGroups, int kTokens>
LFM_INLINE void AddColumns256(const uint8_t* codes, const uint8_t* activations, __m256i (&dots)[kTokens][kGroups]) {
  const __m256i one = _mm256_set1_epi16(1);
  __m256i pairs[kTokens][kGroups];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) pairs[t][g] = _mm256_setzero_si256();
  }
  // Unrolled, these sums would be reordered by the compiler until they no longer fit the registers.
#pragma GCC unroll 1
  for (int d = 0; d < 8; ++d) {
    __m256i rows[kGroups];
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) rows[g] = Load256(codes + (d * kGroups + g) * 32);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const __m256i token = _mm256_set1_epi32(LoadUnaligned<int32_t>(activations + (d * kTokens + t) * 4));
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        if (kBits == 4) {
          const __m256i products = _mm256_maddubs_epi16(rows[g], token);
          pairs[t][g] = _mm256_add_epi16(pairs[t][g], products);
          KeepInRegister(&pairs[t][g]);
        } else {
          const __m256i products = _mm256_maddubs_epi16(_mm256_abs_epi8(rows[g]), _mm256_sign_epi8(token, rows[g]));
          dots[t][g] = _mm256_add_epi32(dots[t][g], _mm256_madd_epi16(products, one));
          KeepInRegister(&dots[t][g]);
        }
      }
    }
  }
  if (kBits == 4) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        dots[t][g] = _mm256_add_epi32(dots[t][g], _mm256_madd_epi16(pairs[t][g], one));
      }
    }
  }
}

// Adds `blocks` blocks of kGroups x 8 rows and kTokens tokens to the sums in y (to zero for the first ones).
template <int kBits, int kGroups, int kTokens, bool kZeroPoints>
void AddTile256(const TileWeights256& weights, int blocks, int block_size, const uint8_t* activations, bool first,
                const int32_t* mask_lanes, float* y, int64_t y_stride) {
  constexpr bool kCorrected = kBits == 4 || kZeroPoints;
  __m256 sums[kTokens][kGroups];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      sums[t][g] = _mm256_setzero_ps();
      if (!first) sums[t][g] = _mm256_maskload_ps(y + t * y_stride + g * 8, Load256(mask_lanes + g * 8));
    }
  }
  const uint8_t* codes = weights.codes;
  const float* scales = weights.scales;
  const int32_t* zero_points = weights.zero_points;
  for (int b = 0; b < blocks; ++b) {
    const uint8_t* code_end = activations + static_cast<int64_t>(block_size) * kTokens;
    __m256i dots[kTokens][kGroups];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const __m256i correction = _mm256_set1_epi32(LoadUnaligned<int32_t>(code_end + t * 4));
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        dots[t][g] = kCorrected ? correction : _mm256_setzero_si256();
        if (kZeroPoints) dots[t][g] = _mm256_madd_epi16(Load256(zero_points + g * 8), correction);
      }
    }
    for (; activations != code_end; activations += 32 * kTokens, codes += 8 * kGroups * 32) {
      AddColumns256<kBits, kGroups, kTokens>(codes, activations, dots);
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const __m256 token_scale = _mm256_set1_ps(LoadUnaligned<float>(code_end + (kTokens + t) * 4));
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        const __m256 scale = _mm256_mul_ps(_mm256_loadu_ps(scales + g * 8), token_scale);
        sums[t][g] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[t][g]), scale, sums[t][g]);
      }
    }
    activations += kTokens * 8;
    scales += kGroups * 8;
    zero_points += kGroups * 8;
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      _mm256_maskstore_ps(y + t * y_stride + g * 8, Load256(mask_lanes + g * 8), sums[t][g]);
    }
  }
}

template <int kBits, int kGroups, bool kZeroPoints>
LFM_INLINE void AddTokens256(const TileWeights256& weights, const WeightRows& shape, int64_t first_block, int blocks,
                             const uint8_t* packed, int64_t tokens, int rows, NextRows* next, float* y,
                             int64_t y_stride) {
  const TokenTiles<kTileTokens256> tiles(tokens);
  const int64_t chunks = (shape.blocks * shape.block_size + kChunkColumns - 1) / kChunkColumns;
  const int64_t next_lines = kTileRows256 * shape.row_bytes / 64 / (chunks * tiles.count) + 1;
  const int block_size = shape.block_size;
  int32_t mask[kTileRows256];
  for (int i = 0; i < kTileRows256; ++i) mask[i] = i < rows ? -1 : 0;
  const bool first = first_block == 0;
  for (int64_t i = 0; i < tiles.count; ++i) {
    const int64_t begin = tiles.Begin(i);
    const int tile = tiles.Size(i);
    const uint8_t* records = packed + TileOffset(shape, tokens, begin, tile, first_block);
    next->Fetch(next_lines);
    float* target = y + begin * y_stride;
    const auto add = tile == 2   ? AddTile256<kBits, kGroups, 2, kZeroPoints>
                     : tile == 3 ? AddTile256<kBits, kGroups, 3, kZeroPoints>
                                 : AddTile256<kBits, kGroups, 4, kZeroPoints>;
    add(weights, blocks, block_size, records, first, mask, target, y_stride);
  }
}

template <int kBits>
void MultiplyTiles256(const WeightRows& weights, int64_t row_begin, int64_t row_end, const uint8_t* packed,
                      int64_t tokens, float* y, int64_t y_stride) {
  const int block_size = weights.block_size;
  const int chunk_blocks = kChunkColumns / block_size;
  const int scale_bytes = weights.scales_are_float16 ? 2 : 4;
  const bool with_zero_points = weights.zero_points != nullptr;
  CacheAligned<TileWeights256> storage;
  TileWeights256& tile = *storage.Get();
  for (int64_t row = row_begin; row < row_end; row += kTileRows256) {
    const int rows = static_cast<int>(row_end - row < kTileRows256 ? row_end - row : kTileRows256);
    const int groups = rows > 8 ? 2 : 1;
    NextRows next(weights, row + kTileRows256, kTileRows256);
    for (int64_t block = 0; block < weights.blocks; block += chunk_blocks) {
      const int64_t blocks_left = weights.blocks - block;
      const int blocks = static_cast<int>(blocks_left < chunk_blocks ? blocks_left : chunk_blocks);
      for (int g = 0; g < groups; ++g) {
        const RowPointers at = RowAt(weights, row + g * 8);
        const int left = rows - g * 8 < 8 ? rows - g * 8 : 8;
        UnpackCodes256<kBits>({at.codes + block * block_size * kBits / 8, weights.row_bytes, left}, blocks * block_size,
                              groups, tile.codes + g * 32);
        UnpackScales256({at.scales + block * scale_bytes, weights.blocks * scale_bytes, left},
                        weights.scales_are_float16, blocks, groups, tile.scales + g * 8);
        if (with_zero_points) {
          UnpackZeroPoints256<kBits>({at.zero_points + block * kBits / 8, weights.zero_point_row_bytes, left}, blocks,
                                     groups, tile.zero_points + g * 8);
        }
      }
      const auto add = groups == 2 ? with_zero_points ? AddTokens256<kBits, 2, true> : AddTokens256<kBits, 2, false>
                       : with_zero_points ? AddTokens256<kBits, 1, true>
                                          : AddTokens256<kBits, 1, false>;
      add(tile, weights, block, blocks, packed, tokens, rows, &next, y + (row - row_begin), y_stride);
    }
  }
}

}  // namespace
}  // namespace lfm
