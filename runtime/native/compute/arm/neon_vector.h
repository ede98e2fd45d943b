// Vector order on ARM (few tokens): two rows at a time against one token, 16 float lanes per row. Bound by memory.
#pragma once

#include "arm/neon_activations.h"

namespace lfm {
namespace {

// Two rows share the loads of a token and need 8 accumulators; four rows would need 16, and compilers then spill.
constexpr int kVectorRows = 2;
// How far ahead of its use a row is asked for: 4 rows at K = 2048 are about 450 cycles of a Cortex-X4, or 130 ns.
constexpr int kPrefetchRows = 4;

// Last, partial group of a row, copied to where whole vectors can be read; what is missing is zero.
struct GroupCopy {
  uint8_t codes[kGroupParts * kPart];
  uint8_t scales[kGroupParts * 4];
  uint8_t zero_points[kGroupParts];
};

template <typename Format>
LFM_INLINE RowPointers CopyPartialGroup(const RowPointers& row, int64_t first_block, int64_t blocks, GroupCopy* copy) {
  constexpr int kBlockBytes = Format::kBlockParts * Format::kPartBytes;
  const size_t left = static_cast<size_t>(blocks - first_block);
  std::memset(copy, 0, sizeof(*copy));
  std::memcpy(copy->codes, row.codes + first_block * kBlockBytes, left * kBlockBytes);
  std::memcpy(copy->scales, row.scales + first_block * Format::kScaleBytes, left * Format::kScaleBytes);
  if (Format::kZeroPoints) {
    std::memcpy(copy->zero_points, row.zero_points + first_block * Format::kBits / 8, (left * Format::kBits + 7) / 8);
  }
  return {copy->codes, copy->scales, copy->zero_points};
}

// The same address, but the compiler does not know it: it then loads the start of each row's sums instead of copying a
// register, and loads are what these loops have to spare.
LFM_INLINE const int32_t* AnotherPointer(const int32_t* address) {
  __asm__("" : "+r"(address));
  return address;
}

// Two rows of one group of 128 elements; `block` is the group's first block in the rows.
template <typename Dot, typename Format>
LFM_INLINE void AddGroup(const RowPointers (&rows)[kVectorRows], int64_t block, const uint8_t* packed_group,
                         float32x4_t (&lanes)[kVectorRows][4]) {
  constexpr int kSumVectors = Format::kBits == 4 ? 1 : 2;  // vectors of lanes that a part fills
  constexpr int kBlockBytes = Format::kBlockParts * Format::kPartBytes;
  constexpr bool kStored = Format::kBits == 4 && !Format::kZeroPoints;  // starts can be taken as they are
  const int8_t* a = reinterpret_cast<const int8_t*>(packed_group);
  const int32_t* starts = reinterpret_cast<const int32_t*>(packed_group + kGroupParts * kPart);
  const float32x4_t a_scales = vld1q_f32(reinterpret_cast<const float*>(starts + kGroupParts * kSumVectors * 4));
  const int32_t* const row_starts[kVectorRows] = {starts, kStored ? AnotherPointer(starts) : starts};
  float32x4_t scales[kVectorRows];
  int32x4_t offsets[kVectorRows];
  ForEach<kVectorRows>([&](auto r) LFM_INLINE_LAMBDA {
    scales[r] = vmulq_f32(GroupScales<Format>(rows[r].scales + block * Format::kScaleBytes), a_scales);
    if constexpr (Format::kZeroPoints) offsets[r] = GroupOffsets<Format>(rows[r].zero_points, block);
  });
  ForEach<kGroupParts>([&](auto part) LFM_INLINE_LAMBDA {
    constexpr int kIndex = decltype(part)::value;
    const PartCodes part_a = {vld1q_s8(a + kIndex * kPart), vld1q_s8(a + kIndex * kPart + 16)};
    const auto start = [&](auto r, int vector) LFM_INLINE_LAMBDA {
      const int32x4_t bias = vdupq_n_s32(kSumBias);
      if constexpr (!Format::kZeroPoints && Format::kBits == 8) return bias;
      const int32x4_t sums = vld1q_s32(row_starts[r] + (kIndex * kSumVectors + vector) * 4);
      if constexpr (kStored) return sums;
      return vmlaq_laneq_s32(bias, sums, offsets[r], kIndex);
    };
    ForEach<kVectorRows>([&](auto r) LFM_INLINE_LAMBDA {
      const PartCodes w = LoadPart<Format>(rows[r].codes + block * kBlockBytes + kIndex * Format::kPartBytes);
      if constexpr (Format::kBits == 4) {
        const int32x4_t sums = Dot::Sums8(start(r, 0), w, part_a);
        lanes[r][kIndex] = vfmaq_laneq_f32(lanes[r][kIndex], FloatSums(sums), scales[r], kIndex);
      } else {
        constexpr int kLanes = kIndex % 2 * 2;
        const int32x4_t first = Dot::Sums4(start(r, 0), w.first, part_a.first);
        const int32x4_t second = Dot::Sums4(start(r, 1), w.second, part_a.second);
        lanes[r][kLanes] = vfmaq_laneq_f32(lanes[r][kLanes], FloatSums(first), scales[r], kIndex);
        lanes[r][kLanes + 1] = vfmaq_laneq_f32(lanes[r][kLanes + 1], FloatSums(second), scales[r], kIndex);
      }
    });
  });
}

// Products of two rows with one packed token; meanwhile what lies `ahead` bytes further is asked for.
template <typename Dot, typename Format>
float32x2_t MultiplyVector(const RowPointers (&two_rows)[kVectorRows], int64_t blocks, int64_t ahead,
                           const uint8_t* token) {
  constexpr int64_t kPackedGroup = VectorGroupBytes(Format::kBits);
  const RowPointers rows[kVectorRows] = {two_rows[0], two_rows[1]};
  float32x4_t lanes[kVectorRows][4];
  ForEach<kVectorRows * 4>([&](auto i) LFM_INLINE_LAMBDA { lanes[i / 4][i % 4] = vdupq_n_f32(0.0f); });
  int64_t block = 0;
  for (; block + Format::kGroupBlocks <= blocks; block += Format::kGroupBlocks, token += kPackedGroup) {
    ForEach<kVectorRows>([&](auto r) LFM_INLINE_LAMBDA {
      const uint8_t* next = rows[r].codes + block * Format::kBlockParts * Format::kPartBytes + ahead;
      ForEach<Format::kGroupBytes / 64>([&](auto line) LFM_INLINE_LAMBDA { __builtin_prefetch(next + line * 64); });
    });
    AddGroup<Dot, Format>(rows, block, token, lanes);
  }
  if (block < blocks) {
    GroupCopy copies[kVectorRows];
    RowPointers copied[kVectorRows];
    ForEach<kVectorRows>(
        [&](auto r) LFM_INLINE_LAMBDA { copied[r] = CopyPartialGroup<Format>(rows[r], block, blocks, &copies[r]); });
    AddGroup<Dot, Format>(copied, 0, token, lanes);
  }
  return SumLanesOfRows(lanes[0], lanes[1]);
}

template <typename Dot, typename Format>
void MultiplyVectors(const WeightRows& weights, int64_t row_begin, int64_t row_end, const uint8_t* packed,
                     int64_t tokens, float* y, int64_t y_stride) {
  const int64_t token_bytes = VectorTokenBytes(weights);
  for (int64_t row = row_begin; row < row_end; row += kVectorRows) {
    RowPointers rows[kVectorRows];
    RowsAt(weights, row, row_end, rows);
    // Rows behind the end are another thread's: then the lines at hand are asked for again, which costs nothing.
    const int64_t ahead = row + kPrefetchRows < row_end ? kPrefetchRows * weights.row_bytes : 0;
    for (int64_t t = 0; t < tokens; ++t) {
      const float32x2_t outputs =
          MultiplyVector<Dot, Format>(rows, weights.blocks, t == 0 ? ahead : 0, packed + t * token_bytes);
      float* out = y + t * y_stride + row - row_begin;
      out[0] = vget_lane_f32(outputs, 0);
      if (row + 1 < row_end) out[1] = vget_lane_f32(outputs, 1);
    }
  }
}

}  // namespace
}  // namespace lfm
