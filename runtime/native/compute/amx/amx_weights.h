// Weights as the first factor of the tile products: 16 rows and up to 512 columns, codes minus zero point as int8.
//
// int4 codes minus any zero point fit int8. int8 codes become code - 128, which is all of it for symmetric weights;
// with zero points the rest, 128 - zero_point times the sum of the activations, is added to the int32 sums.
#pragma once

#include "amx/amx_tile.h"

namespace lfm {
namespace {

constexpr int kAmxRows = 16;
constexpr int kAmxColumns = 512;
constexpr int kAmxBlocks = kAmxColumns / 32;

struct alignas(64) AmxWeights {
  int8_t codes[kAmxRows * kAmxColumns];        // [columns / step][16 rows][step], step = AmxStep<block_size>
  float scales[kAmxRows * kAmxBlocks];         // [row][block]
  int32_t zero_points[kAmxRows * kAmxBlocks];  // [row][block], minus 128; for int8 with zero points alone
};

// Columns of one tile product. A block of 32 leaves half of a tile's row unused: the sum of a tile is one block's.
template <int kBlock>
constexpr int AmxStep = kBlock == 32 ? 32 : 64;

// 64 codes of a row, or 32 and then zeros; int4 ones in the order of amx_activations.h.
template <int kBits>
LFM_INLINE __m512i LoadAmxCodes(const uint8_t* source, bool only32) {
  if (kBits == 8) return _mm512_maskz_loadu_epi64(only32 ? 0x0f : 0xff, source);
  const __m256i bytes = _mm256_maskz_loadu_epi64(only32 ? 0x3 : 0xf, source);
  const __m512i twice =
      _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3), _mm512_castsi256_si512(bytes));
  const __m512i shifts =
      _mm512_setr_epi64(0, 0, 0x0004000400040004, 0x0004000400040004, 0, 0, 0x0004000400040004, 0x0004000400040004);
  return _mm512_and_si512(_mm512_srlv_epi16(twice, shifts), _mm512_set1_epi8(15));
}

// Zero points of 64 codes that start with the block `block`.
template <int kBits, int kBlock>
LFM_INLINE __m512i AmxZeroPoints(const uint8_t* zero_points, int64_t block, bool only32) {
  if (kBits == 8 || zero_points == nullptr) return _mm512_set1_epi8(static_cast<char>(1 << (kBits - 1)));
  const __m512i first = _mm512_set1_epi8(static_cast<char>(ZeroPointAt<kBits>(zero_points, block)));
  if (kBlock > 32 || only32) return first;
  const int second = ZeroPointAt<kBits>(zero_points, block + 1);
  return _mm512_inserti64x4(first, _mm256_set1_epi8(static_cast<char>(second)), 1);
}

template <int kBits, int kBlock>
LFM_INLINE void UnpackAmxCodes(const RowPointers& row, int64_t first_block, int columns, int8_t* target) {
  const uint8_t* source = row.codes + first_block * kBlock * kBits / 8;
  for (int k = 0; k < columns; k += 64) {
    const bool only32 = kBlock == 32 && columns - k < 64;
    const __m512i zero_points = AmxZeroPoints<kBits, kBlock>(row.zero_points, first_block + k / kBlock, only32);
    const __m512i codes = _mm512_sub_epi8(LoadAmxCodes<kBits>(source + k * kBits / 8, only32), zero_points);
    int8_t* step = target + k * kAmxRows;
    if (kBlock == 32) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(step), _mm512_castsi512_si256(codes));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(step + 32 * kAmxRows), _mm512_extracti64x4_epi64(codes, 1));
    } else {
      _mm512_storeu_si512(step, codes);
    }
  }
}

LFM_INLINE void UnpackAmxScales(const uint8_t* source, bool half, int blocks, float* target) {
  const __mmask16 mask = static_cast<__mmask16>((1u << blocks) - 1);
  _mm512_store_ps(target,
                  half ? _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, source)) : _mm512_maskz_loadu_ps(mask, source));
}

LFM_INLINE void UnpackAmxZeroPoints(const uint8_t* source, int blocks, int32_t* target) {
  const __m128i bytes = _mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << blocks) - 1), source);
  _mm512_store_si512(target, _mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), _mm512_set1_epi32(128)));
}

// `blocks` blocks of rows [row, row + rows), at most 16; the first row stands in for missing ones. Fetches what is
// unpacked next, the blocks behind these or the first ones of the row `next_rows` further on, into the L2 cache.
template <int kBits, int kBlock>
void UnpackAmx(const WeightRows& weights, int64_t row, int rows, int64_t first_block, int blocks, int64_t next_rows,
               AmxWeights* target) {
  const int scale_bytes = weights.scales_are_float16 ? 2 : 4;
  const bool last = first_block + blocks == weights.blocks;
  const int code_bytes = blocks * kBlock * kBits / 8;
  for (int r = 0; r < kAmxRows; ++r) {
    const RowPointers at = RowAt(weights, r < rows ? row + r : row);
    const uint8_t* next =
        last ? at.codes + next_rows * weights.row_bytes : at.codes + first_block * kBlock * kBits / 8 + code_bytes;
    for (int i = 0; i < code_bytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(next + i), _MM_HINT_T1);
    UnpackAmxCodes<kBits, kBlock>(at, first_block, blocks * kBlock, target->codes + r * AmxStep<kBlock>);
    UnpackAmxScales(at.scales + first_block * scale_bytes, weights.scales_are_float16, blocks,
                    target->scales + r * kAmxBlocks);
    if (kBits == 8 && weights.zero_points != nullptr) {
      UnpackAmxZeroPoints(at.zero_points + first_block, blocks, target->zero_points + r * kAmxBlocks);
    }
  }
}

}  // namespace
}  // namespace lfm
