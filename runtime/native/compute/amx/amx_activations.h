// Packed activations of the AMX kernel: for 16 tokens and a block, the second factor of the tile products.
//
// Per 16 tokens and block: codes [block_size / 4][16 tokens][4]; scales float [16]; for int8 weights with zero points
// corrections int32 [16]: minus the sum of the block's codes, in 16 bits (at most 128 * 127). Tokens beyond the last
// are zero.
// The order of a block's codes is that in which the weights are unpacked: int8 as they are; int4, where a byte holds an
// even and an odd element, per 32 elements the 16 even ones and then the 16 odd ones.
#pragma once

#include "x86/activations.h"

namespace lfm {
namespace {

constexpr int kAmxTokens = 16;

LFM_INLINE bool CorrectsSums(const WeightRows& weights) {
  return weights.type == WeightType::kInt8 && weights.zero_points != nullptr;
}

LFM_INLINE int64_t AmxBlockBytes(const WeightRows& weights) {
  return weights.block_size * kAmxTokens + 64 + (CorrectsSums(weights) ? 64 : 0);
}

LFM_INLINE int64_t AmxPackedBytes(const WeightRows& weights, int64_t tokens) {
  return (tokens + kAmxTokens - 1) / kAmxTokens * weights.blocks * AmxBlockBytes(weights);
}

LFM_INLINE int32_t SumOfDwords(__m256i dwords) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(dwords), _mm256_extracti128_si256(dwords, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

// One token's share of a block; `record` is where the first code of the token is.
template <int kBits>
LFM_INLINE void StoreAmxBlock(const float* block, int block_size, bool corrects, uint8_t* record) {
  const BlockScale scale = ScaleOfBlock(block, block_size);
  __m256i sums = _mm256_setzero_si256();
  for (int i = 0; i < block_size; i += 32) {
    __m256i codes = CodesOf32<kBits>(block + i, scale.inverse);  // int4: dwords of 4 even, 4 odd, 4 even, ...
    if (kBits == 4) codes = _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
    if (corrects) sums = _mm256_add_epi32(sums, DwordSums(codes));
    uint8_t dwords[32];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dwords), codes);
    for (int d = 0; d < 8; ++d, record += kAmxTokens * 4) std::memcpy(record, dwords + d * 4, 4);
  }
  std::memcpy(record, &scale.scale, 4);
  if (corrects) {
    const int32_t correction = -SumOfDwords(sums) & 0xffff;
    std::memcpy(record + 64, &correction, 4);
  }
}

template <int kBits>
void PackAmx(const WeightRows& weights, const float* x, int64_t x_stride, int64_t tokens, uint8_t* packed) {
  const bool corrects = CorrectsSums(weights);
  const int64_t block_bytes = AmxBlockBytes(weights), tile_bytes = weights.blocks * block_bytes;
  if (tokens % kAmxTokens != 0) {
    std::memset(packed + tokens / kAmxTokens * tile_bytes, 0, static_cast<size_t>(tile_bytes));
  }
  float copy[128];
  for (int64_t t = 0; t < tokens; ++t) {
    uint8_t* record = packed + t / kAmxTokens * tile_bytes + t % kAmxTokens * 4;
    for (int64_t b = 0; b < weights.blocks; ++b, record += block_bytes) {
      const int64_t begin = b * weights.block_size;
      const float* block = BlockElements(x + t * x_stride, weights.columns, begin, weights.block_size, copy);
      StoreAmxBlock<kBits>(block, weights.block_size, corrects, record);
    }
  }
}

}  // namespace
}  // namespace lfm
