// Packs the activations once, then multiplies blocks of rows in parallel.
#include "linear.h"

#include "blocking.h"

namespace lfm {

PackedTokens::PackedTokens(const KernelTable& kernels, const WeightRows& weights, ActivationType activation,
                           int64_t tokens) {
  const TokenChunks chunks{tokens};
  const int64_t last = chunks.Count() - 1;
  chunk_bytes_ = static_cast<int64_t>(kernels.packed_bytes(weights, activation, TokenChunks::kSize));
  bytes_ = last * chunk_bytes_ + static_cast<int64_t>(kernels.packed_bytes(weights, activation, chunks.Size(last)));
}

void Linear(const KernelTable& kernels, const WeightRows& weights, int64_t rows, ActivationType activation,
            const float* x, int64_t tokens, const float* bias, float* y, Scratch::Slot packed_slot, Scratch& scratch,
            Parallel& parallel) {
  if (tokens == 0 || rows == 0) return;
  const TokenChunks chunks{tokens};
  const PackedTokens layout(kernels, weights, activation, tokens);
  uint8_t* packed = scratch.Get<uint8_t>(packed_slot, layout.Bytes());
  parallel.For(chunks.Count(), [&](int64_t chunk) {
    kernels.pack(weights, activation, x + chunks.Begin(chunk) * weights.columns, weights.columns, chunks.Size(chunk),
                 packed + layout.Offset(chunk));
  });

  const RowBlocks blocks(weights, rows, tokens);
  const int64_t chunk_count = chunks.Count();
  // Chunks innermost: a block of weights stays in the cache for all tokens.
  parallel.For(blocks.Count() * chunk_count, [&](int64_t task) {
    const int64_t block = task / chunk_count, chunk = task % chunk_count;
    const int64_t begin = blocks.Begin(block), end = blocks.End(block), size = chunks.Size(chunk);
    float* out = y + chunks.Begin(chunk) * rows + begin;
    kernels.multiply(weights, activation, begin, end, packed + layout.Offset(chunk), size, out, rows);
    if (bias == nullptr) return;
    for (int64_t t = 0; t < size; ++t) {
      for (int64_t r = 0; r < end - begin; ++r) out[t * rows + r] += bias[begin + r];
    }
  });
}

}  // namespace lfm
