// Grouped-query attention over a KV cache that each step streams through once.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace lfm {

inline constexpr int64_t kMaxHeadDim = 256;
inline constexpr int64_t kHeadDimStep = 16;

// The cache's columns are taken in chunks, and a chunk in blocks, both counted from column 0: a query's result does not
// depend on the queries beside it, on the number of threads or on the instruction set.
inline constexpr int64_t kAttentionChunk = 512;
inline constexpr int64_t kAttentionBlock = 64;

// Some queries that share one KV head. Row r is head r % group of the head's group at position r / group, both counted
// from `first_row`; it sees the columns up to its own, past + (first_row + r) / group.
struct AttentionRows {
  const float* queries;  // [rows, head_dim], rotated and scaled
  int64_t rows;
  int64_t first_row;
  int64_t group;
  int64_t past;         // columns before the call's first position
  const float* keys;    // [columns, head_dim]
  const float* values;  // [columns, head_dim]
  int64_t head_dim;     // a multiple of kHeadDimStep, at most kMaxHeadDim
};

// Attention over some columns, not yet divided by the sums: with m = max over the columns of q . k, a row has m,
// the sum of exp(q . k - m) and the sum of exp(q . k - m) * v.
struct AttentionPartial {
  float* maxima;   // [rows]; -inf where a row saw no column
  float* sums;     // [rows]
  float* outputs;  // [rows, head_dim]
};

// What an instruction set provides. Results are defined to the last bit. For each row and block of columns that it
// sees, in ascending order (a missing column of a block counts as one with a weight of 0):
//   scores: s[j] = sum over d of q[d] * k[j][d], one accumulator, fma in ascending d from 0;
//   maximum: m' = max(m, s[j]), NaN ignored; base = m', 0 where m' is -inf;
//   weights: p[j] = ExpBelowZero(s[j] - base); where m' != m, c = ExpBelowZero(m - base) scales sum and outputs;
//   sum += the p[j] in 16 lanes, lane j % 16, ascending, then the tree for h in 8, 4, 2, 1: lane[l] += lane[l + h];
//   outputs[d] = fma(p[j], v[j][d], outputs[d]), ascending j.
// A function is pure: no allocation, no threads, no global state.
struct AttentionKernels {
  const char* name;
  // The partial over columns [begin, end) of one chunk, written whole; columns that no row sees are never read.
  void (*attend)(const AttentionRows& rows, int64_t begin, int64_t end, const AttentionPartial& partial);
};

// The best kernels that the table of that name (kernel_table.h) may run beside.
const AttentionKernels& AttentionKernelsBeside(const char* table);

// One call. T is float32; D = head_dim, G = heads / kv_heads.
struct Attention {
  int64_t batch;
  int64_t sequence;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  float scale;
  const int64_t* pasts;     // [batch]: columns of the past that a row has; it adds `sequence` behind them
  int64_t past_columns;     // capacity of past_key and past_value
  int64_t present_columns;  // capacity of present_key and present_value
  const float* query;       // [batch, sequence, heads * D]
  const float* key;         // [batch, sequence, kv_heads * D]
  const float* value;       // [batch, sequence, kv_heads * D]
  const float* past_key;    // [batch, kv_heads, past_columns, D]
  const float* past_value;
  const float* cos;  // [positions, D / 2]; null: no rotation
  const float* sin;
  float* output;       // [batch, sequence, heads * D]
  float* present_key;  // [batch, kv_heads, present_columns, D]; where it is past_key, columns are added in place
  float* present_value;
};

// present = past, then the new keys (rotated by position) and values, then zeros where present is not the past itself;
// output = softmax(rotated query . key * scale) value over the columns up to a query's own.
void RunAttention(const Attention& attention, const AttentionKernels& kernels, Parallel& parallel);

}  // namespace lfm
