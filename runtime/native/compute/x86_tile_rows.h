// 16-byte pieces of a group of rows, which the tile kernels transpose so that a register holds one row per lane.
#pragma once

#include "x86_rows.h"

namespace lfm {
namespace {

// Columns whose codes are unpacked at a time.
constexpr int kChunkColumns = 512;
constexpr int kChunkBlocks = kChunkColumns / 32;

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

// The rows after those that are being unpacked, on their way to the L2 cache in the order of their addresses: as much
// of them as is unpacked. Unpacking itself jumps from row to row, which memory answers slowly.
struct NextRows {
  const uint8_t* codes;
  const uint8_t* scales;
  int64_t scale_bytes_per_kib;  // scales that belong to 1024 bytes of codes

  LFM_INLINE NextRows(const WeightRows& weights, int64_t row)
      : codes(RowAt(weights, row).codes),
        scales(RowAt(weights, row).scales),
        scale_bytes_per_kib(weights.blocks * (weights.scales_are_float16 ? 2048 : 4096) / weights.row_bytes) {}

  template <int kBytes>
  LFM_INLINE void Fetch() {
#pragma GCC unroll 4
    for (int i = 0; i < kBytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(codes + i), _MM_HINT_T1);
    _mm_prefetch(reinterpret_cast<const char*>(scales), _MM_HINT_T1);
    codes += kBytes;
    scales += scale_bytes_per_kib * kBytes / 1024;
  }
};

}  // namespace
}  // namespace lfm
