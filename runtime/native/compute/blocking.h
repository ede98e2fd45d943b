// How a product is cut into tasks: chunks of tokens that are packed together, and blocks of contiguous weight rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernel_table.h"

namespace lfm {

// Chunks of 128 tokens: with K = 2048 their int8 codes take a quarter of a 1 MB L2 cache, and a block of weights is
// unpacked once for 128 tokens. A rest too small for a tile joins the last chunk, so that the order of summation
// depends on the number of tokens alone.
struct TokenChunks {
  static constexpr int64_t kSize = 128;
  static constexpr int64_t kLargest = kSize + kTileTokens - 1;

  int64_t tokens;
  int64_t size = kSize;

  int64_t Count() const { return tokens < size + kTileTokens ? 1 : (tokens - kTileTokens + size) / size; }
  int64_t Begin(int64_t chunk) const { return chunk * size; }
  int64_t Size(int64_t chunk) const { return chunk + 1 == Count() ? tokens - Begin(chunk) : size; }
};

// Blocks of contiguous rows for a product with `tokens` tokens.
//
// Few tokens: about 128 KB of weights, read at memory speed. The kernels prefetch some 8 KB beyond their rows, which is
// waste where another thread takes the next block: a sixteenth here. Tiles: 64 rows at least, two of the widest tiles
// (32 rows), since the weights are then read from the cache.
struct RowBlocks {
  int64_t rows;
  int64_t size;

  // `matrices`: how many matrices of this form one task reads the same rows of.
  RowBlocks(const WeightRows& weights, int64_t row_count, int64_t tokens, int64_t matrices = 1) : rows(row_count) {
    const bool tiles = tokens >= kTileTokens;
    const int64_t task_bytes = (tiles ? 64 : 128) * 1024;
    const int64_t row_bytes = weights.row_bytes + weights.blocks * (weights.scales_are_float16 ? 2 : 4);
    const int64_t wanted = task_bytes / std::max<int64_t>(1, row_bytes * matrices);
    size = wanted >= 32 ? wanted / 32 * 32 : wanted >= 16 ? 16 : wanted >= 8 ? 8 : 4;
    if (tiles) size = std::max<int64_t>(size, 64);
  }

  int64_t Count() const { return (rows + size - 1) / size; }
  int64_t Begin(int64_t block) const { return block * size; }
  int64_t End(int64_t block) const { return std::min(rows, (block + 1) * size); }
};

// Floats of a task's intermediate results on its stack: 64 rows of the largest chunk.
inline constexpr int64_t kTaskFloats = TokenChunks::kLargest * 64;

// Rows of a block whose results for `tokens` tokens fit kTaskFloats: whole tiles where possible, an even number.
inline int64_t RowsThatFit(int64_t tokens) {
  const int64_t rows = kTaskFloats / tokens;
  return rows >= 16 ? rows / 16 * 16 : rows / 2 * 2;
}

}  // namespace lfm
