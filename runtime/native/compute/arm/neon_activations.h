// Packed activations of the ARM kernels: int8 blocks in vector order or tile order, or float rows.
//
// A part is 32 elements in the two vectors that meet the weights' (PartCodes): int4 even then odd elements, int8 the
// first 16 and then the others.
// Vector order (tokens < kTileTokens), per token and group of 4 parts: codes [4][32 bytes]; starts of the lanes' sums
//   int32x4, one vector per part for int4, two for int8; scales float [4], one per part. Missing parts are zeros.
//   A start is kSumBias - 8 * sum of the lane's codes for symmetric int4; with zero points it is -sum, to be multiplied
//   by each row's zero point; symmetric int8 takes none.
// Tile order, per quad of 4 tokens and block: codes [block / 32][128 bytes] as Dot::StoreTilePart arranges the tokens;
//   negative sums int32 [4]; scales float [4]. Tokens that are missing in the last quad are zeros.
// Float rows: K floats per token, padded with zeros to a multiple of 16.
#pragma once

#include <limits>

#include "arm/neon_rows.h"

namespace lfm {
namespace {

constexpr int kQuad = 4;  // tokens of one record of the tile order

// Float weights take float activations whatever is asked for.
LFM_INLINE bool QuantizesActivations(const WeightRows& weights, ActivationType activation) {
  return activation == ActivationType::kInt8PerBlock &&
         (weights.type == WeightType::kInt8 || weights.type == WeightType::kInt4);
}

LFM_INLINE int64_t VectorGroups(const WeightRows& weights) {
  return (weights.blocks * weights.block_size / kPart + kGroupParts - 1) / kGroupParts;
}

constexpr int64_t VectorGroupBytes(int bits) { return kGroupParts * (kPart + (bits == 4 ? 16 : 32) + 4); }

LFM_INLINE int64_t VectorTokenBytes(const WeightRows& weights) {
  return VectorGroups(weights) * VectorGroupBytes(weights.type == WeightType::kInt4 ? 4 : 8);
}

constexpr int64_t TileBlockBytes(int block_size) { return kQuad * (block_size + 8); }

LFM_INLINE int64_t QuadBytes(const WeightRows& weights) { return weights.blocks * TileBlockBytes(weights.block_size); }

LFM_INLINE int64_t Quads(int64_t tokens) { return (tokens + kQuad - 1) / kQuad; }

LFM_INLINE int64_t PaddedColumns(const WeightRows& weights) { return (weights.columns + 15) / 16 * 16; }

inline size_t PackedBytes(const WeightRows& weights, ActivationType activation, int64_t tokens) {
  int64_t bytes = 0;
  if (!QuantizesActivations(weights, activation)) {
    bytes = tokens * PaddedColumns(weights) * 4;
  } else if (tokens < kTileTokens) {
    bytes = tokens * VectorTokenBytes(weights);
  } else {
    bytes = Quads(tokens) * QuadBytes(weights);
  }
  return static_cast<size_t>((bytes + 63) / 64 * 64);
}

// What a block's codes are made with: code = round(x * inverse); value = code * scale.
struct BlockScale {
  float scale;
  float inverse;
};

LFM_INLINE BlockScale ScaleOfBlock(const float* x, int count) {
  float32x4_t most = vdupq_n_f32(0.0f);
  for (int i = 0; i < count; i += 8) {
    most = vmaxq_f32(most, vmaxq_f32(vabsq_f32(vld1q_f32(x + i)), vabsq_f32(vld1q_f32(x + i + 4))));
  }
  const float largest = vmaxvq_f32(most);  // fmax hands on a NaN
  if (!(largest <= std::numeric_limits<float>::max())) return {std::numeric_limits<float>::quiet_NaN(), 0.0f};
  constexpr float kTiny = 0x1p-120f;  // below it 127 / largest may overflow
  return {largest / 127.0f, largest < kTiny ? 0.0f : 127.0f / largest};
}

LFM_INLINE int16x8_t RoundedCodes8(const float* x, float inverse) {
  const int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x), inverse));
  const int32x4_t high = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4), inverse));
  return vcombine_s16(vmovn_s32(low), vmovn_s32(high));
}

// Codes of 32 elements. A zero inverse (NaN, infinity or nothing in the block) gives zeros.
template <int kBits>
LFM_INLINE PartCodes CodesOfPart(const float* x, float inverse) {
  if (inverse == 0.0f) return {vdupq_n_s8(0), vdupq_n_s8(0)};
  const int8x16_t low = vcombine_s8(vmovn_s16(RoundedCodes8(x, inverse)), vmovn_s16(RoundedCodes8(x + 8, inverse)));
  const int8x16_t high =
      vcombine_s8(vmovn_s16(RoundedCodes8(x + 16, inverse)), vmovn_s16(RoundedCodes8(x + 24, inverse)));
  if (kBits == 8) return {low, high};
  return {vuzp1q_s8(low, high), vuzp2q_s8(low, high)};
}

// Negative sums of the codes of each 4 bytes.
LFM_INLINE int32x4_t NegativeSums(int8x16_t codes) { return vnegq_s32(vpaddlq_s16(vpaddlq_s8(codes))); }

template <int kBits>
LFM_INLINE void StoreVectorPart(uint8_t* token, int64_t part, PartCodes codes, float scale, bool zero_points) {
  uint8_t* group = token + part / kGroupParts * VectorGroupBytes(kBits);
  const int64_t index = part % kGroupParts;
  int8_t* target = reinterpret_cast<int8_t*>(group) + index * kPart;
  vst1q_s8(target, codes.first);
  vst1q_s8(target + 16, codes.second);
  int32_t* sums = reinterpret_cast<int32_t*>(group + kGroupParts * kPart);
  const int32x4_t first = NegativeSums(codes.first), second = NegativeSums(codes.second);
  if (kBits == 4) {
    const int32x4_t both = vaddq_s32(first, second);
    vst1q_s32(sums + index * 4, zero_points ? both : vmlaq_n_s32(vdupq_n_s32(kSumBias), both, 8));
  } else {
    vst1q_s32(sums + index * 8, first);
    vst1q_s32(sums + index * 8 + 4, second);
  }
  reinterpret_cast<float*>(sums + kGroupParts * (kBits == 4 ? 4 : 8))[index] = scale;
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
  const int size = weights.block_size;
  const bool zero_points = weights.zero_points != nullptr;
  const int64_t parts = VectorGroups(weights) * kGroupParts;
  float copy[128];
  for (int64_t t = 0; t < tokens; ++t) {
    uint8_t* token = packed + t * VectorTokenBytes(weights);
    int64_t part = 0;
    for (int64_t b = 0; b < weights.blocks; ++b) {
      const float* block = BlockElements(x + t * x_stride, weights.columns, b * size, size, copy);
      const BlockScale scale = ScaleOfBlock(block, size);
      for (int i = 0; i < size; i += kPart, ++part) {
        StoreVectorPart<kBits>(token, part, CodesOfPart<kBits>(block + i, scale.inverse), scale.scale, zero_points);
      }
    }
    const PartCodes none = {vdupq_n_s8(0), vdupq_n_s8(0)};
    for (; part < parts; ++part) StoreVectorPart<kBits>(token, part, none, 0.0f, zero_points);
  }
}

// One block of token `t` of a quad into the quad's record of that block.
template <typename Dot, int kBits>
LFM_INLINE void StoreTileBlock(const float* block, int size, int t, uint8_t* record) {
  const BlockScale scale = ScaleOfBlock(block, size);
  int32x4_t sums = vdupq_n_s32(0);
  for (int i = 0; i < size; i += kPart) {
    const PartCodes codes = CodesOfPart<kBits>(block + i, scale.inverse);
    sums = vaddq_s32(sums, vaddq_s32(NegativeSums(codes.first), NegativeSums(codes.second)));
    Dot::StoreTilePart(reinterpret_cast<int8_t*>(record) + i * kQuad, t, codes);
  }
  int32_t* sum = reinterpret_cast<int32_t*>(record + size * kQuad);
  sum[t] = vaddvq_s32(sums);
  reinterpret_cast<float*>(sum + kQuad)[t] = scale.scale;
}

template <typename Dot, int kBits>
void PackTiles(const WeightRows& weights, const float* x, int64_t x_stride, int64_t tokens, uint8_t* packed) {
  const int size = weights.block_size;
  const float zeros[128] = {};
  float copy[128];
  for (int64_t t = 0; t < Quads(tokens) * kQuad; ++t) {
    uint8_t* quad = packed + t / kQuad * QuadBytes(weights);
    for (int64_t b = 0; b < weights.blocks; ++b) {
      const float* block = t < tokens ? BlockElements(x + t * x_stride, weights.columns, b * size, size, copy) : zeros;
      StoreTileBlock<Dot, kBits>(block, size, static_cast<int>(t % kQuad), quad + b * TileBlockBytes(size));
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

template <typename Dot>
void Pack(const WeightRows& weights, ActivationType activation, const float* x, int64_t x_stride, int64_t tokens,
          void* packed) {
  uint8_t* bytes = static_cast<uint8_t*>(packed);
  const bool int4 = weights.type == WeightType::kInt4;
  if (!QuantizesActivations(weights, activation)) {
    PackFloats(weights, x, x_stride, tokens, static_cast<float*>(packed));
  } else if (tokens < kTileTokens) {
    int4 ? PackVectors<4>(weights, x, x_stride, tokens, bytes) : PackVectors<8>(weights, x, x_stride, tokens, bytes);
  } else {
    int4 ? PackTiles<Dot, 4>(weights, x, x_stride, tokens, bytes)
         : PackTiles<Dot, 8>(weights, x, x_stride, tokens, bytes);
  }
}

}  // namespace
}  // namespace lfm
