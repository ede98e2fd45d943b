// 16-byte pieces of a group of rows, which the tile kernels transpose so that a register holds one row per lane.
#pragma once

#include "x86/activations.h"

namespace lfm {
namespace {

// Blocks that are unpacked at a time, at most.
constexpr int kChunkBlocks = kChunkColumns / 32;

// A T on the stack that starts a cache line. Not by alignas: GCC for Windows relies on it without aligning the stack.
template <typename T>
struct CacheAligned {
  uint8_t bytes[sizeof(T) + 63];
  LFM_INLINE T* Get() { return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(bytes) + 63) / 64 * 64); }
};

// A piece of up to 16 or 8 consecutive rows, of which `rows` exist; the first row stands in for the others.
struct RowBytes {
  const uint8_t* first;
  int64_t stride;
  int rows;
};

// 16 bytes of one row, of which `bytes` may be read; the rest is zero.
LFM_INLINE __m128i Load16(const RowBytes& source, int row, int bytes) {
  const uint8_t* address = source.first + (row < source.rows ? row : 0) * source.stride;
  if (bytes >= 16) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(address));
  uint8_t copy[16] = {};
  std::memcpy(copy, address, static_cast<size_t>(bytes));
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(copy));
}

// The rows after those that are being computed, on their way to the L2 cache in the order of their addresses: unpacking
// itself jumps from row to row, which memory answers slowly. They are asked for little by little, since a burst would
// fill the core's queue of misses and hold up everything behind it.
struct NextRows {
  const uint8_t* codes;
  const uint8_t* scales;
  int64_t lines;                 // of codes that are left
  int64_t scale_bytes_per_line;  // that belong to a line of codes

  // Of `rows` rows.
  LFM_INLINE NextRows(const WeightRows& weights, int64_t row, int64_t rows)
      : codes(RowAt(weights, row).codes),
        scales(RowAt(weights, row).scales),
        lines(rows * weights.row_bytes / 64),
        scale_bytes_per_line(weights.blocks * (weights.scales_are_float16 ? 128 : 256) / weights.row_bytes) {}

  LFM_INLINE void Fetch(int64_t count) {
    for (count = count < lines ? count : lines; count > 0; --count, --lines) {
      _mm_prefetch(reinterpret_cast<const char*>(codes), _MM_HINT_T1);
      _mm_prefetch(reinterpret_cast<const char*>(scales), _MM_HINT_T1);
      codes += 64;
      scales += scale_bytes_per_line;
    }
  }
};

}  // namespace
}  // namespace lfm
