// Packed activations of the x86 kernels: int8 blocks in vector order or tile order, or float rows.
//
// Codes are stored in dwords that meet the weights' dwords: 4 consecutive elements for int8; for int4, whose dword
// holds elements 8l..8l+7 as nibbles, the 4 even elements (low nibbles) and then the 4 odd ones (high nibbles).
//
// Vector order (tokens < kTileTokens), per token and group, 16 lanes each:
//   int4: even codes [64 bytes], odd codes [64], corrections int32 [16], scales float [16];  int8: codes [64], ...
// Tile order, per tile of T tokens and block: codes, dword by dword, [dwords][T]; corrections int32 [T]; scales [T].
//   First the blocks of the first 512 columns, tile after tile, then those of the next 512 (TileOffset): a kernel,
//   which unpacks its weights for that many columns, reads the activations as one stream.
// A correction is -zero_point * sum of the codes for symmetric weights; with zero points it is -sum in 16 bits (at
// most 128 * 127), to be multiplied by each row's zero point.
// Float rows: K floats per token, padded with zeros to a multiple of 16.
#pragma once

#include <cstddef>
#include <limits>

#include "x86/rows.h"

namespace lfm {
namespace {

// Float weights take float activations whatever is asked for.
LFM_INLINE bool QuantizesActivations(const WeightRows& weights, ActivationType activation) {
  return activation == ActivationType::kInt8PerBlock &&
         (weights.type == WeightType::kInt8 || weights.type == WeightType::kInt4);
}

// Rows of weights, a multiple of 12, that stay in the L2 cache while the float activations of all tokens pass by.
LFM_INLINE int64_t CachedRows(const WeightRows& weights) {
  const int64_t twelves = 131072 / (12 * weights.row_bytes + 1);
  return twelves > 1 ? twelves * 12 : 12;
}

LFM_INLINE int64_t VectorGroups(const WeightRows& weights) {
  const int64_t group = weights.type == WeightType::kInt4 ? 128 : 64;
  return (weights.blocks * weights.block_size + group - 1) / group;
}

LFM_INLINE int64_t VectorGroupBytes(const WeightRows& weights) { return weights.type == WeightType::kInt4 ? 256 : 192; }

// Bytes of one token's share of a block in tile order: codes, correction, scale.
LFM_INLINE int64_t TileBlockBytes(const WeightRows& weights) { return weights.block_size + 8; }

// Columns whose weights are unpacked at a time: the tile order goes through all tokens for these, then for the next.
constexpr int kChunkColumns = 512;

// Where the record of a block is, for the tile of `size` tokens that begins at token `begin` of `tokens`.
LFM_INLINE int64_t TileOffset(const WeightRows& weights, int64_t tokens, int64_t begin, int64_t size, int64_t block) {
  const int64_t chunk_blocks = kChunkColumns / weights.block_size;
  const int64_t first = block / chunk_blocks * chunk_blocks;
  const int64_t blocks = weights.blocks - first < chunk_blocks ? weights.blocks - first : chunk_blocks;
  return (tokens * first + begin * blocks + size * (block - first)) * TileBlockBytes(weights);
}

LFM_INLINE int64_t PaddedColumns(const WeightRows& weights) { return (weights.columns + 15) / 16 * 16; }

inline size_t PackedBytes(const WeightRows& weights, ActivationType activation, int64_t tokens) {
  int64_t bytes = 0;
  if (!QuantizesActivations(weights, activation)) {
    bytes = tokens * PaddedColumns(weights) * 4;
  } else if (tokens < kTileTokens) {
    bytes = tokens * VectorGroups(weights) * VectorGroupBytes(weights);
  } else {
    bytes = tokens * weights.blocks * TileBlockBytes(weights);
  }
  return static_cast<size_t>((bytes + 63) / 64 * 64);
}

// What a block's codes are made with: code = round(x * inverse); value = code * scale.
struct BlockScale {
  float scale;
  float inverse;
};

LFM_INLINE BlockScale ScaleOfBlock(const float* x, int count) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i most = _mm256_setzero_si256();
  for (int i = 0; i < count; i += 8) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
    most = _mm256_max_epu32(most, _mm256_and_si256(bits, magnitude));
  }
  __m128i four = _mm_max_epu32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0xb1));
  // Magnitudes of floats order like their bits, and NaN and infinity are the largest.
  const uint32_t bits = static_cast<uint32_t>(_mm_cvtsi128_si32(four));
  if (bits >= 0x7f800000u) return {std::numeric_limits<float>::quiet_NaN(), 0.0f};
  const float largest = _mm_cvtss_f32(_mm_castsi128_ps(four));
  constexpr float kTiny = 0x1p-120f;  // below it 127 / largest may overflow
  return {largest / 127.0f, largest < kTiny ? 0.0f : 127.0f / largest};
}

LFM_INLINE __m256i RoundedCodes8(const float* x, __m256 inverse) {
  return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse));
}

// 32 codes as 8 dwords in the order described at the top. A zero inverse (NaN, infinity or nothing in x) gives zeros.
template <int kBits>
LFM_INLINE __m256i CodesOf32(const float* x, float inverse) {
  if (inverse == 0.0f) return _mm256_setzero_si256();
  const __m256 inverses = _mm256_set1_ps(inverse);
  const __m256i low = _mm256_packs_epi32(RoundedCodes8(x, inverses), RoundedCodes8(x + 8, inverses));
  const __m256i high = _mm256_packs_epi32(RoundedCodes8(x + 16, inverses), RoundedCodes8(x + 24, inverses));
  // The packs work in 128-bit halves and leave dwords of elements 0, 8, 16, 24, 4, 12, 20, 28.
  const __m256i codes =
      _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  if (kBits == 8) return codes;
  return _mm256_shuffle_epi8(codes, _mm256_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15, 0, 2, 4, 6,
                                                     1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
}

// Sums of the 4 signed bytes of each dword.
LFM_INLINE __m256i DwordSums(__m256i codes) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), codes), _mm256_set1_epi16(1));
}

template <int kBits>
LFM_INLINE __m256i CorrectionOfSums(__m256i sums, bool zero_points) {
  const __m256i negative = _mm256_sub_epi32(_mm256_setzero_si256(), sums);
  if (zero_points) return _mm256_and_si256(negative, _mm256_set1_epi32(0xffff));
  return _mm256_slli_epi32(negative, kBits - 1);
}

LFM_INLINE void Store256(uint8_t* target, __m256i value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), value);
}

LFM_INLINE void Store128(uint8_t* target, __m128i value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target), value);
}

// 32 elements of the vector order: a quarter of an int4 group, half of an int8 one.
template <int kBits>
LFM_INLINE void StoreVectorPart(uint8_t* token, int64_t part, __m256i codes, float scale, bool zero_points) {
  if (kBits == 8) {
    uint8_t* target = token + (part / 2) * 192 + (part % 2) * 32;
    Store256(target, codes);
    Store256(target + 64, CorrectionOfSums<8>(DwordSums(codes), zero_points));
    Store256(target + 128, _mm256_castps_si256(_mm256_set1_ps(scale)));
  } else {
    uint8_t* target = token + (part / 4) * 256 + (part % 4) * 16;
    const __m256i halves = _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
    const __m256i sums = DwordSums(halves);
    const __m128i odd_sums = _mm256_extracti128_si256(sums, 1);
    const __m256i lane_sums = _mm256_add_epi32(sums, _mm256_castsi128_si256(odd_sums));
    Store128(target, _mm256_castsi256_si128(halves));
    Store128(target + 64, _mm256_extracti128_si256(halves, 1));
    Store128(target + 128, _mm256_castsi256_si128(CorrectionOfSums<4>(lane_sums, zero_points)));
    Store128(target + 192, _mm_castps_si128(_mm_set1_ps(scale)));
  }
}

// The elements of a block, by way of a zero-padded copy where the row ends inside it.
LFM_INLINE const float* BlockElements(const float* row, int64_t columns, int64_t begin, int block_size, float* copy) {
  const int64_t left = columns - begin;
  if (left >= block_size) return row + begin;
  std::memset(copy, 0, static_cast<size_t>(block_size) * sizeof(float));
  std::memcpy(copy, row + begin, static_cast<size_t>(left) * sizeof(float));
  return copy;
}

template <int kBits>
void PackVectors(const WeightRows& weights, const float* x, int64_t x_stride, int64_t tokens, uint8_t* packed) {
  const bool zero_points = weights.zero_points != nullptr;
  const int64_t block_parts = weights.block_size / 32;
  const int64_t parts = VectorGroups(weights) * (kBits == 4 ? 4 : 2);
  float copy[128];
  for (int64_t t = 0; t < tokens; ++t) {
    uint8_t* token = packed + t * VectorGroups(weights) * VectorGroupBytes(weights);
    int64_t part = 0;
    for (int64_t b = 0; b < weights.blocks; ++b) {
      const float* block =
          BlockElements(x + t * x_stride, weights.columns, b * weights.block_size, weights.block_size, copy);
      const BlockScale scale = ScaleOfBlock(block, weights.block_size);
      for (int64_t i = 0; i < block_parts; ++i, ++part) {
        StoreVectorPart<kBits>(token, part, CodesOf32<kBits>(block + i * 32, scale.inverse), scale.scale, zero_points);
      }
    }
    for (; part < parts; ++part) StoreVectorPart<kBits>(token, part, _mm256_setzero_si256(), 0.0f, zero_points);
  }
}

// Lane i of the result combines the lanes of vectors[i].
template <typename Combine>
LFM_INLINE __m256i CombineLanes(const __m256i (&vectors)[8], Combine combine) {
  __m256i pairs[4], fours[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    pairs[i] = combine(_mm256_unpacklo_epi32(vectors[2 * i], vectors[2 * i + 1]),
                       _mm256_unpackhi_epi32(vectors[2 * i], vectors[2 * i + 1]));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    fours[i] = combine(_mm256_unpacklo_epi64(pairs[2 * i], pairs[2 * i + 1]),
                       _mm256_unpackhi_epi64(pairs[2 * i], pairs[2 * i + 1]));
  }
  return combine(_mm256_permute2x128_si256(fours[0], fours[1], 0x20),
                 _mm256_permute2x128_si256(fours[0], fours[1], 0x31));
}

// Lane j of rows[i] becomes lane i of rows[j].
LFM_INLINE void Transpose8(__m256i (&rows)[8]) {
  __m256i pairs[8], fours[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm256_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm256_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const int at = i / 2 * 4 + i % 2;
    fours[2 * i] = _mm256_unpacklo_epi64(pairs[at], pairs[at + 2]);
    fours[2 * i + 1] = _mm256_unpackhi_epi64(pairs[at], pairs[at + 2]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x31);
  }
}

template <int kCount>
LFM_INLINE void StoreDwords(uint8_t* target, __m256i dwords) {
  __m128i part = _mm256_castsi256_si128(dwords);
  if (kCount >= 4) {
    Store128(target, part);
    part = _mm256_extracti128_si256(dwords, 1);
    target += 16;
  }
  constexpr int kLeft = kCount % 4;
  if (kLeft >= 2) _mm_storel_epi64(reinterpret_cast<__m128i*>(target), part);
  if (kLeft % 2 == 1) {
    const int32_t last = _mm_cvtsi128_si32(kLeft == 3 ? _mm_srli_si128(part, 8) : part);
    std::memcpy(target + kLeft / 2 * 8, &last, 4);
  }
}

// What ScaleOfBlock gives, for 8 blocks at a time.
struct BlockScales {
  __m256 scales;
  float inverses[8];
};

LFM_INLINE void ScalesOfMagnitudes(__m256i bits, BlockScales* out) {
  const __m256 largest = _mm256_castsi256_ps(bits), most = _mm256_set1_ps(127.0f);
  const __m256i not_finite = _mm256_cmpgt_epi32(bits, _mm256_set1_epi32(0x7f7fffff));
  const __m256 usable =
      _mm256_andnot_ps(_mm256_castsi256_ps(not_finite), _mm256_cmp_ps(largest, _mm256_set1_ps(0x1p-120f), _CMP_GE_OQ));
  const __m256 nan = _mm256_set1_ps(std::numeric_limits<float>::quiet_NaN());
  out->scales = _mm256_blendv_ps(_mm256_div_ps(largest, most), nan, _mm256_castsi256_ps(not_finite));
  _mm256_storeu_ps(out->inverses, _mm256_and_ps(_mm256_div_ps(most, largest), usable));
}

// The blocks from `first` to `end` of kTile tokens, at `record`.
template <int kBits, int kTile>
void PackTile(const WeightRows& weights, const float* x, int64_t x_stride, int64_t first, int64_t end,
              uint8_t* record) {
  static_assert(kTile <= 8, "a register holds a dword of 8 tokens");
  const bool zero_points = weights.zero_points != nullptr;
  const int block_size = weights.block_size;
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  float copies[kTile][128];
  for (int64_t b = first; b < end; ++b) {
    const float* blocks[kTile];
    __m256i most[8], sums[8];
#pragma GCC unroll 8
    for (int t = 0; t < 8; ++t) {
      most[t] = sums[t] = _mm256_setzero_si256();
      if (t >= kTile) continue;
      blocks[t] = BlockElements(x + t * x_stride, weights.columns, b * block_size, block_size, copies[t]);
      for (int i = 0; i < block_size; i += 8) {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(blocks[t] + i));
        most[t] = _mm256_max_epu32(most[t], _mm256_and_si256(bits, magnitude));
      }
    }
    BlockScales scales;
    ScalesOfMagnitudes(CombineLanes(most, [](__m256i a, __m256i c) { return _mm256_max_epu32(a, c); }), &scales);
    for (int i = 0; i < block_size; i += 32) {
      __m256i codes[8];
#pragma GCC unroll 8
      for (int t = 0; t < 8; ++t) {
        codes[t] = t < kTile ? CodesOf32<kBits>(blocks[t] + i, scales.inverses[t]) : _mm256_setzero_si256();
        if (t < kTile) sums[t] = _mm256_add_epi32(sums[t], DwordSums(codes[t]));
      }
      Transpose8(codes);
#pragma GCC unroll 8
      for (int d = 0; d < 8; ++d, record += kTile * 4) StoreDwords<kTile>(record, codes[d]);
    }
    const __m256i sum = CombineLanes(sums, [](__m256i a, __m256i c) { return _mm256_add_epi32(a, c); });
    StoreDwords<kTile>(record, CorrectionOfSums<kBits>(sum, zero_points));
    StoreDwords<kTile>(record + kTile * 4, _mm256_castps_si256(scales.scales));
    record += kTile * 8;
  }
}

template <int kBits, int kMaxTile>
void PackTiles(const WeightRows& weights, const float* x, int64_t x_stride, int64_t tokens, uint8_t* packed) {
  const TokenTiles<kMaxTile> tiles(tokens);
  const int64_t chunk_blocks = kChunkColumns / weights.block_size;
  for (int64_t i = 0; i < tiles.count; ++i) {
    const int64_t begin = tiles.Begin(i);
    const int size = tiles.Size(i);
    const auto pack = size == 2   ? PackTile<kBits, 2>
                      : size == 3 ? PackTile<kBits, 3>
                      : size == 4 ? PackTile<kBits, 4>
                      : size == 5 ? PackTile<kBits, 5>
                                  : PackTile<kBits, 6>;
    for (int64_t b = 0; b < weights.blocks; b += chunk_blocks) {
      const int64_t end = weights.blocks - b < chunk_blocks ? weights.blocks : b + chunk_blocks;
      pack(weights, x + begin * x_stride, x_stride, b, end, packed + TileOffset(weights, tokens, begin, size, b));
    }
  }
}

inline void PackFloats(const WeightRows& weights, const float* x, int64_t x_stride, int64_t tokens, float* packed) {
  const int64_t padded = PaddedColumns(weights);
  for (int64_t t = 0; t < tokens; ++t, packed += padded) {
    std::memcpy(packed, x + t * x_stride, static_cast<size_t>(weights.columns) * sizeof(float));
    for (int64_t k = weights.columns; k < padded; ++k) packed[k] = 0.0f;
  }
}

template <int kMaxTile>
void Pack(const WeightRows& weights, ActivationType activation, const float* x, int64_t x_stride, int64_t tokens,
          void* packed) {
  uint8_t* bytes = static_cast<uint8_t*>(packed);
  const bool int4 = weights.type == WeightType::kInt4;
  if (!QuantizesActivations(weights, activation)) {
    PackFloats(weights, x, x_stride, tokens, static_cast<float*>(packed));
  } else if (tokens < kTileTokens) {
    int4 ? PackVectors<4>(weights, x, x_stride, tokens, bytes) : PackVectors<8>(weights, x, x_stride, tokens, bytes);
  } else {
    int4 ? PackTiles<4, kMaxTile>(weights, x, x_stride, tokens, bytes)
         : PackTiles<8, kMaxTile>(weights, x, x_stride, tokens, bytes);
  }
}

}  // namespace
}  // namespace lfm
