// The one interface between the ops and the code for an instruction set: pack activations, multiply by weight rows.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lfm {

enum class WeightType { kFloat32, kFloat16, kInt8, kInt4 };

// Rows of a weight matrix [N, K] in the layout of the model file (quantize/formats.py declares it).
//
// kInt8 and kInt4 hold unsigned codes in blocks of `block_size` elements along K; value = (code - zero_point) * scale.
// In an int4 block byte j holds element 2j in its low nibble and 2j+1 in its high one. The last block of a row is
// padded with the zero point. Zero points are packed like codes, one per block; without them they are 2^(bits-1).
struct WeightRows {
  WeightType type;
  int64_t columns;   // K
  int block_size;    // 32, 64 or 128; 0 for float types
  int64_t blocks;    // ceil(K / block_size); 0 for float types
  const void* data;  // row r starts at data + r * row_bytes
  int64_t row_bytes;
  const void* scales;  // [N, blocks]; null for float types
  bool scales_are_float16;
  const uint8_t* zero_points;  // null: symmetric
  int64_t zero_point_row_bytes;
};

// How activations enter a product with integer weights; float weights always take kFloat32.
enum class ActivationType { kInt8PerBlock, kFloat32 };

// From this number of tokens on, multiply() computes tiles of tokens and rows.
inline constexpr int64_t kTileTokens = 4;

// What an instruction set provides. All functions are pure: no allocation, no threads, no global state.
//
// Results are defined to the last bit, so that every instruction set, thread count and split gives the same:
//
// Quantized activations (kInt8PerBlock), per token and block of the weights' block_size (a missing tail counts as 0):
//   scale_a = max|x| / 127 (float32 division); a = int8(round to nearest even(x * (127 / max|x|))), all 0 where
//   max|x| < 2^-120 (where 127 / max|x| may overflow). Where the block holds a NaN or an infinity, scale_a is NaN and
//   a is 0, so that the result is NaN.
//
// Integer path, fewer than kTileTokens tokens ("vector order"): 16 float accumulators. For int4 a group is 128
//   consecutive elements of K and lane l covers its elements 8l..8l+7; for int8 a group is 64 elements and lane l
//   covers 4l..4l+3. s[l] = exact int32 sum of (code - zero_point) * a over the lane; groups ascending:
//   acc[l] = fma(float(s[l]), scale_w * scale_a, acc[l]), scale_w converted to float32 exactly, one float multiply for
//   the product of scales. Elements beyond K contribute nothing (their lanes are still added as 0 * scale product 0).
//   Result: for h in 8, 4, 2, 1: acc[l] += acc[l + h] for l < h; acc[0].
// Integer path, kTileTokens tokens or more ("tile order"): one float accumulator per output; blocks ascending:
//   acc = fma(float(exact int32 sum over the block), scale_w * scale_a, acc).
// Float path (kFloat32, any weight type; codes dequantized to (code - zero_point) * scale in float32 first):
//   16 accumulators, element k goes to lane k % 16 by fma in ascending k, then the same tree; any token count.
struct KernelTable {
  const char* name;

  // Bytes of the packed form of `tokens` rows of activations; a multiple of 64. Layouts are private to the table.
  size_t (*packed_bytes)(const WeightRows& weights, ActivationType activation, int64_t tokens);

  // Pack x[t * x_stride + k], t < tokens, k < weights.columns into `packed` (64-byte aligned).
  void (*pack)(const WeightRows& weights, ActivationType activation, const float* x, int64_t x_stride, int64_t tokens,
               void* packed);

  // y[t * y_stride + (r - row_begin)] = sum over k of weight[r, k] * x[t, k] for all packed tokens and the given rows.
  // Called from several threads at once with disjoint rows and the same packed activations.
  void (*multiply)(const WeightRows& weights, ActivationType activation, int64_t row_begin, int64_t row_end,
                   const void* packed, int64_t tokens, float* y, int64_t y_stride);
};

// One table per instruction set; null where this build has no code for it.
const KernelTable* ScalarKernels();
const KernelTable* Avx2Kernels();
const KernelTable* Avx512VnniKernels();
const KernelTable* AmxKernels();
const KernelTable* NeonKernels();
const KernelTable* NeonDotprodKernels();
const KernelTable* NeonI8mmKernels();

}  // namespace lfm
