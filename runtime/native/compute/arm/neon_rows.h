// Rows of a weight matrix as the ARM kernels walk them: parts of 32 codes, their scales and zero points.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernel_table.h"

#define LFM_INLINE inline __attribute__((always_inline))
#define LFM_INLINE_LAMBDA __attribute__((always_inline))

// Everything in the ARM headers has internal linkage: each ISA file compiles them with its own flags, and a linker
// that merged the copies could put i8mm code into the baseline table.
namespace lfm {
namespace {

// body(0), body(1), ... with compile-time indices. A loop would do, but compilers keep arrays of vectors in registers
// only where every index is a constant before they first look at them.
template <typename Body, int... kIndex>
LFM_INLINE void CallWithEach(Body&& body, std::integer_sequence<int, kIndex...>) {
  (body(std::integral_constant<int, kIndex>{}), ...);
}

template <int kCount, typename Body>
LFM_INLINE void ForEach(Body&& body) {
  CallWithEach(body, std::make_integer_sequence<int, kCount>{});
}

constexpr int kPart = 32;       // elements that the kernels take at a time
constexpr int kGroupParts = 4;  // parts of one step of the vector order: 128 elements
constexpr int kRowTile = 4;     // rows of one step of the tile order

// Compile-time form of a block format, so that the inner loops have no branches.
template <int kBitsValue, int kBlockValue, bool kHalfScalesValue, bool kZeroPointsValue>
struct BlockFormat {
  static constexpr int kBits = kBitsValue;
  static constexpr int kBlock = kBlockValue;
  static constexpr bool kHalfScales = kHalfScalesValue;
  static constexpr bool kZeroPoints = kZeroPointsValue;
  static constexpr int kPartBytes = kPart * kBits / 8;
  static constexpr int kBlockParts = kBlock / kPart;
  static constexpr int kGroupBlocks = kGroupParts / kBlockParts;
  static constexpr int kGroupBytes = kGroupParts * kPartBytes;
  static constexpr int kScaleBytes = kHalfScales ? 2 : 4;
};

template <int kBits, int kBlock, typename Visitor>
LFM_INLINE void VisitScales(const WeightRows& weights, Visitor&& visitor) {
  if (weights.scales_are_float16) {
    if (weights.zero_points != nullptr) return visitor(BlockFormat<kBits, kBlock, true, true>{});
    return visitor(BlockFormat<kBits, kBlock, true, false>{});
  }
  if (weights.zero_points != nullptr) return visitor(BlockFormat<kBits, kBlock, false, true>{});
  return visitor(BlockFormat<kBits, kBlock, false, false>{});
}

template <int kBits, typename Visitor>
LFM_INLINE void VisitBlocks(const WeightRows& weights, Visitor&& visitor) {
  if (weights.block_size == 32) return VisitScales<kBits, 32>(weights, visitor);
  if (weights.block_size == 64) return VisitScales<kBits, 64>(weights, visitor);
  return VisitScales<kBits, 128>(weights, visitor);
}

// Calls visitor(BlockFormat<...>{}) with the format of integer `weights`.
template <typename Visitor>
LFM_INLINE void VisitFormat(const WeightRows& weights, Visitor&& visitor) {
  if (weights.type == WeightType::kInt4) return VisitBlocks<4>(weights, visitor);
  return VisitBlocks<8>(weights, visitor);
}

// One row: its codes, scales and packed zero points.
struct RowPointers {
  const uint8_t* codes;
  const uint8_t* scales;
  const uint8_t* zero_points;
};

LFM_INLINE RowPointers RowAt(const WeightRows& weights, int64_t row) {
  const int64_t scale_bytes = weights.blocks * (weights.scales_are_float16 ? 2 : 4);
  return {static_cast<const uint8_t*>(weights.data) + row * weights.row_bytes,
          static_cast<const uint8_t*>(weights.scales) + row * scale_bytes,
          weights.zero_points == nullptr ? nullptr : weights.zero_points + row * weights.zero_point_row_bytes};
}

// Pointers to kRows rows from `row` on; behind `row_end` the last row stands again, so that kernels need no other form
// for the rest. Its outputs are not stored.
template <int kRows>
LFM_INLINE void RowsAt(const WeightRows& weights, int64_t row, int64_t row_end, RowPointers (&rows)[kRows]) {
  for (int r = 0; r < kRows; ++r) rows[r] = RowAt(weights, row + r < row_end ? row + r : row_end - 1);
}

template <typename Value>
LFM_INLINE Value LoadUnaligned(const uint8_t* source) {
  Value value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

// 32 codes in two vectors. int4: even elements, odd elements, as 0..15. int8: elements 0..15, 16..31, as code - 128.
struct PartCodes {
  int8x16_t first;
  int8x16_t second;
};

template <typename Format>
LFM_INLINE PartCodes LoadPart(const uint8_t* codes) {
  if constexpr (Format::kBits == 4) {
    const uint8x16_t bytes = vld1q_u8(codes);
    return {vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15))), vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4))};
  } else {
    const uint8x16_t sign = vdupq_n_u8(0x80);
    return {vreinterpretq_s8_u8(veorq_u8(vld1q_u8(codes), sign)),
            vreinterpretq_s8_u8(veorq_u8(vld1q_u8(codes + 16), sign))};
  }
}

// Scales of the four parts of a group of one row, from the group's first scale on.
template <typename Format>
LFM_INLINE float32x4_t GroupScales(const uint8_t* scales) {
  if constexpr (Format::kHalfScales) {
    uint16x4_t halves;
    if constexpr (Format::kBlock == 32) {
      halves = vld1_u16(reinterpret_cast<const uint16_t*>(scales));
    } else if constexpr (Format::kBlock == 64) {
      const uint16x4_t two = vreinterpret_u16_u32(vdup_n_u32(LoadUnaligned<uint32_t>(scales)));
      halves = vzip1_u16(two, two);
    } else {
      halves = vdup_n_u16(LoadUnaligned<uint16_t>(scales));
    }
    return vcvt_f32_f16(vreinterpret_f16_u16(halves));
  } else if constexpr (Format::kBlock == 32) {
    return vld1q_f32(reinterpret_cast<const float*>(scales));
  } else if constexpr (Format::kBlock == 64) {
    const float32x2_t two = vld1_f32(reinterpret_cast<const float*>(scales));
    return vcombine_f32(vdup_lane_f32(two, 0), vdup_lane_f32(two, 1));
  } else {
    return vdupq_n_f32(LoadUnaligned<float>(scales));
  }
}

// Zero point of one block, from the packed bytes of its row.
template <typename Format>
LFM_INLINE int32_t ZeroPointAt(const uint8_t* zero_points, int64_t block) {
  if constexpr (!Format::kZeroPoints) return 1 << (Format::kBits - 1);
  if constexpr (Format::kBits == 8) return zero_points[block];
  return zero_points[block >> 1] >> ((block & 1) * 4) & 15;
}

// What LoadPart's codes have to be lowered by: the zero point, less what LoadPart took off already.
template <typename Format>
LFM_INLINE int32_t CodeOffset(const uint8_t* zero_points, int64_t block) {
  return ZeroPointAt<Format>(zero_points, block) - (Format::kBits == 8 ? 128 : 0);
}

// The same for the four parts of the group whose first block is `block`.
template <typename Format>
LFM_INLINE int32x4_t GroupOffsets(const uint8_t* zero_points, int64_t block) {
  uint32_t bytes = 0;
  for (int i = 0; i < Format::kGroupBlocks; ++i) {
    const uint32_t value = static_cast<uint32_t>(ZeroPointAt<Format>(zero_points, block + i));
    for (int p = 0; p < Format::kBlockParts; ++p) bytes |= value << (8 * (i * Format::kBlockParts + p));
  }
  const uint16x4_t wide = vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(bytes))));
  const int32x4_t offsets = vreinterpretq_s32_u32(vmovl_u16(wide));
  return Format::kBits == 8 ? vsubq_s32(offsets, vdupq_n_s32(128)) : offsets;
}

// Integer sums are kept as the low mantissa bits of the float 1.5 * 2^23: a subtraction of that float converts them,
// exactly while |sum| < 2^22 (the largest is 128 * 255 * 127). On most cores it has twice the throughput of scvtf.
constexpr int32_t kSumBias = 0x4b400000;

LFM_INLINE float32x4_t FloatSums(int32x4_t sums) {
  return vsubq_f32(vreinterpretq_f32_s32(sums), vdupq_n_f32(12582912.0f));
}

// The fixed tree over 16 lanes: steps h = 8 and h = 4, then the others for two rows at once.
LFM_INLINE float32x4_t SumLanes(const float32x4_t (&lanes)[4]) {
  return vaddq_f32(vaddq_f32(lanes[0], lanes[2]), vaddq_f32(lanes[1], lanes[3]));
}

LFM_INLINE float32x2_t SumLanesOfRows(const float32x4_t (&first)[4], const float32x4_t (&second)[4]) {
  const float64x2_t a = vreinterpretq_f64_f32(SumLanes(first)), b = vreinterpretq_f64_f32(SumLanes(second));
  const float32x4_t pairs = vaddq_f32(vreinterpretq_f32_f64(vtrn1q_f64(a, b)), vreinterpretq_f32_f64(vtrn2q_f64(a, b)));
  return vget_low_f32(vpaddq_f32(pairs, pairs));
}

// Stores the first `count` of four consecutive outputs.
LFM_INLINE void StoreOutputs(float* y, float32x4_t outputs, int64_t count) {
  if (count >= 4) {
    vst1q_f32(y, outputs);
    return;
  }
  float lanes[4];
  vst1q_f32(lanes, outputs);
  for (int64_t i = 0; i < count; ++i) y[i] = lanes[i];
}

}  // namespace
}  // namespace lfm
