// Prefill with AMX: the tiles give the int32 sums of 16 rows, 16 tokens and a block; AVX-512 scales and adds them up.
//
// The weights are the first factor, with a row of K per row of the tile, and the activations the second, which wants
// 4 consecutive elements of K side by side: so the weights, unpacked anew in every call, need no transposition.
//
// What bounds it: the definition of the result (kernel_table.h) asks for the int32 sum of every block, 256 of them per
// product of tiles. A product takes the tile unit 16 cycles, of a block of 32 (8192 multiplications, half of what a
// product can do) or 64. Every 16 sums then take a conversion, a product of scales and an fma, which two ports share:
// 24 cycles for 256 sums (48 where 512-bit arithmetic has one port); loads, two a cycle: 16 sums, 16 scales of rows,
// and the rows of the tiles, 16 + 8 (block 32), 16 + 16 (64) or twice that (128): 28, 32 or 48 cycles; and the store of
// the sums, 16. So with block 32 not more than 8192 / 28 = 290 multiplications a cycle, 510 with 64 and 680 with 128,
// of the tile unit's own 1024. AVX512-VNNI's bound is 93 (11 instructions on two ports for 512). Unpacking takes some
// 16 cycles for 512 int4 codes: with 64 tokens and block 32 a seventh of the time of their products.
//
// The units work at the same time where the processor finds the work: the dots of the next 4 blocks are started before
// those of the last 4 are scaled, each in a tile of its own, which covers a product's latency of 52 cycles. 16 sums of
// floats stay in registers for 512 columns. In an L1 cache of 48 KiB are then the weights of 32 rows (16 KiB, used for
// all tokens), the activations of 16 tokens (8 KiB), two sets of dots (8 KiB) and the scales.
#pragma once

#include "amx/amx_activations.h"
#include "amx/amx_weights.h"

namespace lfm {
namespace {

constexpr int kAmxGroups = 2;       // groups of 16 rows that share the activations of a chunk
constexpr int kAmxDotTiles = 4;     // tiles 0..3; 4 and 5 hold weights, 6 and 7 activations
constexpr int kAmxTokenTiles = 10;  // whose sums wait at once: more tokens than a task has (TokenChunks::kLargest)
constexpr int kAmxSums = kAmxRows * kAmxTokens;

// The tiles of this thread for the time of a scope.
class TileScope {
 public:
  LFM_INLINE explicit TileScope(int step) {
    TileConfig config;
    for (int tile = 0; tile < kTileCount; ++tile) {
      const bool weights = tile == 4 || tile == 5, activations = tile >= 6;
      config.rows[tile] = static_cast<uint8_t>(activations ? step / 4 : kTileRows);
      config.row_bytes[tile] = static_cast<uint16_t>(weights ? step : kTileRowBytes);
    }
    TileConfigure(config);
  }
  LFM_INLINE ~TileScope() { TileRelease(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

template <int kBlock, int kTile>
LFM_INLINE void StartDots(const int8_t* codes, const uint8_t* activations) {
  constexpr int kStep = AmxStep<kBlock>, kWeights = 4 + kTile % 2, kActivations = 6 + kTile % 2;
  TileZero<kTile>();
  for (int k = 0; k < kBlock; k += kStep) {
    TileLoad<kWeights>(codes + k * kAmxRows, kStep);
    TileLoad<kActivations>(activations + k * kAmxTokens, kTileRowBytes);
    TileDot<kTile, kWeights, kActivations>();
  }
}

// Dots [block][16 rows][16 tokens] of up to 4 blocks.
template <int kBlock>
LFM_INLINE void ComputeDots(const int8_t* codes, const uint8_t* activations, int64_t block_bytes, int blocks,
                            int32_t* dots) {
  constexpr int kCodes = kBlock * kAmxRows;
  StartDots<kBlock, 0>(codes, activations);
  if (blocks > 1) StartDots<kBlock, 1>(codes + kCodes, activations + block_bytes);
  if (blocks > 2) StartDots<kBlock, 2>(codes + 2 * kCodes, activations + 2 * block_bytes);
  if (blocks > 3) StartDots<kBlock, 3>(codes + 3 * kCodes, activations + 3 * block_bytes);
  TileStore<0>(dots, kTileRowBytes);
  if (blocks > 1) TileStore<1>(dots + kAmxSums, kTileRowBytes);
  if (blocks > 2) TileStore<2>(dots + 2 * kAmxSums, kTileRowBytes);
  if (blocks > 3) TileStore<3>(dots + 3 * kAmxSums, kTileRowBytes);
}

// sums[row] += dots * scales of one block. `scaling` is what follows the block's codes in the packed activations.
template <bool kCorrects>
LFM_INLINE void AddDots(const int32_t* dots, const float* row_scales, const int32_t* zero_points,
                        const uint8_t* scaling, __m512 (&sums)[kAmxRows]) {
  const __m512 token_scales = _mm512_loadu_ps(scaling);
  const __m512i corrections = kCorrects ? _mm512_loadu_si512(scaling + 64) : _mm512_setzero_si512();
#pragma GCC unroll 16
  for (int r = 0; r < kAmxRows; ++r) {
    __m512i dot = _mm512_load_si512(dots + r * kAmxTokens);
    if (kCorrects) {
      const __m512i zero_point = _mm512_set1_epi32(zero_points[r * kAmxBlocks]);
      dot = _mm512_add_epi32(dot, _mm512_madd_epi16(zero_point, corrections));
    }
    const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(row_scales[r * kAmxBlocks]), token_scales);
    sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, sums[r]);
  }
}

// Adds `blocks` blocks of 16 rows and 16 tokens to the sums [row][token].
template <int kBlock, bool kCorrects>
void AddAmxTile(const AmxWeights& weights, int blocks, const uint8_t* activations, int64_t block_bytes, bool first,
                float* waiting_sums) {
  alignas(64) int32_t dots[2][kAmxDotTiles * kAmxSums];
  __m512 sums[kAmxRows];
#pragma GCC unroll 16
  for (int r = 0; r < kAmxRows; ++r) {
    sums[r] = first ? _mm512_setzero_ps() : _mm512_load_ps(waiting_sums + r * kAmxTokens);
  }
  const auto compute = [&](int begin) __attribute__((always_inline)) {
    const int left = blocks - begin;
    ComputeDots<kBlock>(weights.codes + begin * kBlock * kAmxRows, activations + begin * block_bytes, block_bytes,
                        left < kAmxDotTiles ? left : kAmxDotTiles, dots[begin / kAmxDotTiles % 2]);
  };
  compute(0);
  for (int begin = 0; begin < blocks; begin += kAmxDotTiles) {
    const int next = begin + kAmxDotTiles;
    if (next < blocks) compute(next);
    const int32_t* block_dots = dots[begin / kAmxDotTiles % 2];
    const int end = next < blocks ? next : blocks;
    for (int b = begin; b < end; ++b, block_dots += kAmxSums) {
      AddDots<kCorrects>(block_dots, weights.scales + b, weights.zero_points + b,
                         activations + b * block_bytes + kBlock * kAmxTokens, sums);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kAmxRows; ++r) _mm512_store_ps(waiting_sums + r * kAmxTokens, sums[r]);
}

// y[t * y_stride + r] = sums[r][t] for the rows of the mask and `tokens` tokens.
inline void StoreTransposed(const float* sums, __mmask16 rows, int tokens, float* y, int64_t y_stride) {
  __m512 a[16], b[16];
  // Transposes 2 x 2 floats, then 2 x 2 pairs, and then the 4 x 4 quarters of the registers.
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    const __m512 even = _mm512_load_ps(sums + i * kAmxTokens), odd = _mm512_load_ps(sums + (i + 1) * kAmxTokens);
    a[i] = _mm512_unpacklo_ps(even, odd);
    a[i + 1] = _mm512_unpackhi_ps(even, odd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const auto pairs = [&](int j) __attribute__((always_inline)) { return _mm512_castps_pd(a[i + j]); };
    b[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs(0), pairs(2)));
    b[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs(0), pairs(2)));
    b[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs(1), pairs(3)));
    b[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs(1), pairs(3)));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 low01 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x44), low23 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xee);
    const __m512 high01 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x44);
    const __m512 high23 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xee);
    a[i] = _mm512_shuffle_f32x4(low01, high01, 0x88);
    a[i + 4] = _mm512_shuffle_f32x4(low01, high01, 0xdd);
    a[i + 8] = _mm512_shuffle_f32x4(low23, high23, 0x88);
    a[i + 12] = _mm512_shuffle_f32x4(low23, high23, 0xdd);
  }
#pragma GCC unroll 16
  for (int t = 0; t < 16; ++t) {
    if (t < tokens) _mm512_mask_storeu_ps(y + t * y_stride, rows, a[t]);
  }
}

// What a call works with. On the stack of the thread: 48 KiB with the dots.
struct alignas(64) AmxPanel {
  AmxWeights weights[kAmxGroups];
  float sums[kAmxTokenTiles][kAmxGroups][kAmxSums];
};

// Up to 32 rows and kAmxTokenTiles tiles of tokens, whose packed activations start at `packed`.
template <int kBits, int kBlock, bool kCorrects>
void MultiplyAmxPanel(const WeightRows& weights, int64_t row, int rows, const uint8_t* packed, int tokens, float* y,
                      int64_t y_stride, AmxPanel* panel) {
  constexpr int kChunkBlocks = kAmxColumns / kBlock;
  const int64_t block_bytes = AmxBlockBytes(weights);
  const int tiles = (tokens + kAmxTokens - 1) / kAmxTokens;
  for (int64_t block = 0; block < weights.blocks; block += kChunkBlocks) {
    const int64_t left = weights.blocks - block;
    const int blocks = static_cast<int>(left < kChunkBlocks ? left : kChunkBlocks);
    for (int g = 0; g * kAmxRows < rows; ++g) {
      UnpackAmx<kBits, kBlock>(weights, row + g * kAmxRows, rows - g * kAmxRows, block, blocks, kAmxGroups * kAmxRows,
                               &panel->weights[g]);
    }
    for (int i = 0; i < tiles; ++i) {
      const uint8_t* activations = packed + (i * weights.blocks + block) * block_bytes;
      for (int g = 0; g * kAmxRows < rows; ++g) {
        AddAmxTile<kBlock, kCorrects>(panel->weights[g], blocks, activations, block_bytes, block == 0,
                                      panel->sums[i][g]);
      }
    }
  }
  for (int i = 0; i < tiles; ++i) {
    for (int g = 0; g * kAmxRows < rows; ++g) {
      const int group_rows = rows - g * kAmxRows;
      const auto mask = static_cast<__mmask16>(group_rows < 16 ? (1u << group_rows) - 1 : 0xffff);
      StoreTransposed(panel->sums[i][g], mask, tokens - i * kAmxTokens, y + i * kAmxTokens * y_stride + g * kAmxRows,
                      y_stride);
    }
  }
}

template <int kBits, int kBlock, bool kCorrects>
void MultiplyAmx(const WeightRows& weights, int64_t row_begin, int64_t row_end, const uint8_t* packed, int64_t tokens,
                 float* y, int64_t y_stride) {
  constexpr int64_t kTokens = kAmxTokenTiles * kAmxTokens, kRows = kAmxGroups * kAmxRows;
  const int64_t tile_bytes = weights.blocks * AmxBlockBytes(weights);
  const TileScope tiles(AmxStep<kBlock>);
  AmxPanel panel;
  for (int64_t t = 0; t < tokens; t += kTokens) {
    const int token_count = static_cast<int>(tokens - t < kTokens ? tokens - t : kTokens);
    for (int64_t row = row_begin; row < row_end; row += kRows) {
      const int row_count = static_cast<int>(row_end - row < kRows ? row_end - row : kRows);
      MultiplyAmxPanel<kBits, kBlock, kCorrects>(weights, row, row_count, packed + t / kAmxTokens * tile_bytes,
                                                 token_count, y + t * y_stride + (row - row_begin), y_stride, &panel);
    }
  }
}

}  // namespace
}  // namespace lfm
