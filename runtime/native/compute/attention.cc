// Adds the new columns to the cache, and deals the queries and the cache's chunks out to the threads.
#include "attention.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "attention_exp.h"
#include "isa_dispatch.h"
#include "scratch.h"

namespace lfm {

extern const AttentionKernels kAttentionScalar;
#if defined(LFM_HAVE_ATTENTION_AVX2)
extern const AttentionKernels kAttentionAvx2;
#endif
#if defined(LFM_HAVE_ATTENTION_AVX512)
extern const AttentionKernels kAttentionAvx512;
#endif
#if defined(LFM_HAVE_ATTENTION_NEON)
extern const AttentionKernels kAttentionNeon;
#endif

const AttentionKernels& AttentionKernelsBeside(const char* table) {
  if (std::strcmp(table, "scalar") == 0) return kAttentionScalar;
#if defined(LFM_HAVE_ATTENTION_AVX512)
  if (std::strcmp(table, "avx2") != 0 && FindKernels("avx512vnni") != nullptr) return kAttentionAvx512;
#endif
#if defined(LFM_HAVE_ATTENTION_AVX2)
  if (FindKernels("avx2") != nullptr) return kAttentionAvx2;
#endif
#if defined(LFM_HAVE_ATTENTION_NEON)
  if (FindKernels("neon") != nullptr) return kAttentionNeon;
#endif
  return kAttentionScalar;
}

namespace {

// Up to this many queries of a KV head, threads take chunks of the cache; beyond, they take queries.
constexpr int64_t kFewRows = 16;
// Queries of a tile: their floats stay in the first-level cache beside a block of keys and one of values.
constexpr int64_t kMostRows = 64;
constexpr int64_t kTileFloats = kMostRows * 64;
static_assert(kFewRows * kMaxHeadDim <= kTileFloats);
// Tiles are made smaller until every thread of a large machine has some.
constexpr int64_t kEnoughTiles = 64;
// Less than this takes less time than waking the threads: floats copied or rotated, products added.
constexpr int64_t kFewFloats = 32 * 1024;
constexpr int64_t kFewProducts = 256 * 1024;

template <class Body>
void ForWhereItPays(bool pays, Parallel& parallel, int64_t tasks, const Body& body) {
  if (pays) {
    parallel.For(tasks, body);
  } else {
    for (int64_t task = 0; task < tasks; ++task) body(task);
  }
}

// The halves of a head rotated against each other: (x1, x2) → (x1 cos - x2 sin, x2 cos + x1 sin), times `scale`.
void RotateHead(const Attention& a, const float* head, int64_t position, float scale, float* out) {
  const int64_t half = a.head_dim / 2;
  if (a.cos == nullptr) {
    for (int64_t i = 0; i < a.head_dim; ++i) out[i] = head[i] * scale;
    return;
  }
  const float *cos = a.cos + position * half, *sin = a.sin + position * half;
  for (int64_t i = 0; i < half; ++i) {
    out[i] = (head[i] * cos[i] - head[i + half] * sin[i]) * scale;
    out[i + half] = (head[i + half] * cos[i] + head[i] * sin[i]) * scale;
  }
}

// One KV head of one row of the batch.
struct KvHead {
  int64_t row;
  int64_t head;
  int64_t past;
  float* keys;  // in the present
  float* values;
};

KvHead KvHeadAt(const Attention& a, int64_t index) {
  const int64_t row = index / a.kv_heads, columns = index * a.present_columns * a.head_dim;
  return {row, index % a.kv_heads, a.pasts[row], a.present_key + columns, a.present_value + columns};
}

// present = past, new columns, zeros.
void AddColumns(const Attention& a, int64_t index) {
  const KvHead kv = KvHeadAt(a, index);
  const int64_t d = a.head_dim, past_floats = kv.past * d, end = (kv.past + a.sequence) * d;
  const auto start = [&](const float* past, const float* all_present, float* present) {
    if (past == all_present) return;
    std::copy_n(past + index * a.past_columns * d, past_floats, present);
    std::fill(present + end, present + a.present_columns * d, 0.0f);
  };
  start(a.past_key, a.present_key, kv.keys);
  start(a.past_value, a.present_value, kv.values);
  for (int64_t t = 0; t < a.sequence; ++t) {
    const int64_t source = ((kv.row * a.sequence + t) * a.kv_heads + kv.head) * d, target = past_floats + t * d;
    RotateHead(a, a.key + source, kv.past + t, 1.0f, kv.keys + target);
    std::copy_n(a.value + source, d, kv.values + target);
  }
}

// Offset of row r of a KV head in query and output: the heads of a group stand side by side at each position.
int64_t RowOffset(const Attention& a, const KvHead& kv, int64_t r) {
  const int64_t group = a.heads / a.kv_heads;
  return ((kv.row * a.sequence + r / group) * a.heads + kv.head * group + r % group) * a.head_dim;
}

void RotateQueries(const Attention& a, const KvHead& kv, int64_t first, int64_t count, float* queries) {
  const int64_t group = a.heads / a.kv_heads;
  for (int64_t r = 0; r < count; ++r) {
    RotateHead(a, a.query + RowOffset(a, kv, first + r), kv.past + (first + r) / group, a.scale,
               queries + r * a.head_dim);
  }
}

AttentionRows RowsOf(const Attention& a, const KvHead& kv, int64_t first, int64_t count, const float* queries) {
  return {queries, count, first, a.heads / a.kv_heads, kv.past, kv.keys, kv.values, a.head_dim};
}

// What both have seen, in `total`: sums and outputs on the scale of the larger maximum.
void Merge(const AttentionPartial& total, const AttentionPartial& next, int64_t rows, int64_t head_dim) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  for (int64_t r = 0; r < rows; ++r) {
    if (next.maxima[r] == kNone && next.sums[r] == 0) continue;
    const float largest = next.maxima[r] > total.maxima[r] ? next.maxima[r] : total.maxima[r];
    const float base = largest == kNone ? 0.0f : largest;
    const float before = ExpBelowZero(total.maxima[r] - base), after = ExpBelowZero(next.maxima[r] - base);
    total.maxima[r] = largest;
    total.sums[r] = total.sums[r] * before + next.sums[r] * after;
    float* sum = total.outputs + r * head_dim;
    const float* addend = next.outputs + r * head_dim;
    for (int64_t d = 0; d < head_dim; ++d) sum[d] = sum[d] * before + addend[d] * after;
  }
}

void WriteRows(const Attention& a, const KvHead& kv, int64_t first, int64_t count, const AttentionPartial& total) {
  for (int64_t r = 0; r < count; ++r) {
    const float inverse = 1.0f / total.sums[r];
    float* out = a.output + RowOffset(a, kv, first + r);
    for (int64_t d = 0; d < a.head_dim; ++d) out[d] = total.outputs[r * a.head_dim + d] * inverse;
  }
}

struct PartialBuffer {
  alignas(64) float outputs[kTileFloats];
  float maxima[kMostRows];
  float sums[kMostRows];

  AttentionPartial View() { return {maxima, sums, outputs}; }
};

// A tile of queries over all chunks.
void AttendTile(const Attention& a, const AttentionKernels& kernels, int64_t index, int64_t first, int64_t count) {
  alignas(64) float queries[kTileFloats];
  PartialBuffer total, next;
  const KvHead kv = KvHeadAt(a, index);
  RotateQueries(a, kv, first, count, queries);
  const AttentionRows rows = RowsOf(a, kv, first, count, queries);
  const int64_t end = kv.past + (first + count - 1) / rows.group + 1;
  kernels.attend(rows, 0, std::min(end, kAttentionChunk), total.View());
  for (int64_t chunk = kAttentionChunk; chunk < end; chunk += kAttentionChunk) {
    kernels.attend(rows, chunk, std::min(end, chunk + kAttentionChunk), next.View());
    Merge(total.View(), next.View(), count, a.head_dim);
  }
  WriteRows(a, kv, first, count, total.View());
}

// Few queries: every chunk of every KV head is a task, and their partials are merged in order.
void AttendByChunk(const Attention& a, const AttentionKernels& kernels, int64_t rows, int64_t most_columns,
                   Parallel& parallel) {
  const int64_t kv_heads = a.batch * a.kv_heads, chunks = (most_columns + kAttentionChunk - 1) / kAttentionChunk;
  const int64_t partial_floats = rows * (a.head_dim + 2), query_floats = rows * a.head_dim;
  const ScratchLease scratch;
  float* queries = scratch->Get<float>(Scratch::kPackedInput, kv_heads * query_floats);
  float* partials = scratch->Get<float>(Scratch::kResults, kv_heads * chunks * partial_floats);
  const auto partial_at = [&](int64_t task) -> AttentionPartial {
    float* floats = partials + task * partial_floats;
    return {floats + query_floats, floats + query_floats + rows, floats};
  };
  const auto end_of = [&](int64_t index) { return a.pasts[index / a.kv_heads] + a.sequence; };
  ForWhereItPays(kv_heads * query_floats > kFewFloats, parallel, kv_heads,
                 [&](int64_t index) { RotateQueries(a, KvHeadAt(a, index), 0, rows, queries + index * query_floats); });
  const bool pays = kv_heads * rows * most_columns * a.head_dim > kFewProducts;
  ForWhereItPays(pays, parallel, kv_heads * chunks, [&](int64_t task) {
    const int64_t index = task / chunks, begin = task % chunks * kAttentionChunk, end = end_of(index);
    if (begin >= end) return;
    kernels.attend(RowsOf(a, KvHeadAt(a, index), 0, rows, queries + index * query_floats), begin,
                   std::min(end, begin + kAttentionChunk), partial_at(task));
  });
  ForWhereItPays(kv_heads * chunks * partial_floats > kFewFloats, parallel, kv_heads, [&](int64_t index) {
    const AttentionPartial total = partial_at(index * chunks);
    for (int64_t chunk = 1; chunk * kAttentionChunk < end_of(index); ++chunk) {
      Merge(total, partial_at(index * chunks + chunk), rows, a.head_dim);
    }
    WriteRows(a, KvHeadAt(a, index), 0, rows, total);
  });
}

}  // namespace

void RunAttention(const Attention& a, const AttentionKernels& kernels, Parallel& parallel) {
  const int64_t kv_heads = a.batch * a.kv_heads;
  if (kv_heads == 0) return;
  const bool in_place = a.past_key == a.present_key && a.past_value == a.present_value;
  const int64_t columns = in_place ? a.sequence : a.present_columns;
  ForWhereItPays(kv_heads * columns * a.head_dim > kFewFloats, parallel, kv_heads,
                 [&](int64_t index) { AddColumns(a, index); });
  if (a.sequence == 0) return;

  const int64_t rows = a.sequence * (a.heads / a.kv_heads);
  const int64_t most_columns = *std::max_element(a.pasts, a.pasts + a.batch) + a.sequence;
  if (rows <= kFewRows) {
    AttendByChunk(a, kernels, rows, most_columns, parallel);
    return;
  }
  int64_t tile = std::clamp(kTileFloats / a.head_dim, kFewRows, kMostRows);
  while (tile > kFewRows && kv_heads * ((rows + tile - 1) / tile) < kEnoughTiles) tile /= 2;
  const int64_t tiles = (rows + tile - 1) / tile;
  // Threads stay with a KV head, whose columns wait in the cache. A head's last tiles have the most columns to see:
  // they come first, so that threads end together.
  ForWhereItPays(kv_heads * rows * most_columns * a.head_dim > kFewProducts, parallel, kv_heads * tiles,
                 [&](int64_t task) {
                   const int64_t first = (tiles - 1 - task % tiles) * tile;
                   AttendTile(a, kernels, task / tiles, first, std::min(tile, rows - first));
                 });
}

}  // namespace lfm
