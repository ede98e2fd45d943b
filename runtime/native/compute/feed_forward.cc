// One token: all threads stream its experts' rows. Several: tokens are grouped by expert and multiplied as tiles.
#include "feed_forward.h"

#include <algorithm>

#include "blocking.h"
#include "elementwise.h"
#include "linear.h"

namespace lfm {
namespace {

// Tokens whose intermediate results are held at once: with 4 experts of width 1792 and H = 2048 some 75 MB, and each
// expert's weights are read once for about 128 tokens.
constexpr int64_t kTokensAtOnce = 1024;

// Tokens that go through one expert together.
struct Chunk {
  int64_t expert;
  int64_t first;  // position of its first token in the grouped order
  int64_t size;
  int64_t packed_input;  // byte offsets
  int64_t packed_hidden;
};

WeightRows OfExpert(WeightRows weights, int64_t rows, int64_t expert) {
  const int64_t first_row = rows * expert;
  weights.data = static_cast<const uint8_t*>(weights.data) + first_row * weights.row_bytes;
  if (weights.scales != nullptr) {
    const int64_t scale_bytes = weights.scales_are_float16 ? 2 : 4;
    weights.scales = static_cast<const uint8_t*>(weights.scales) + first_row * weights.blocks * scale_bytes;
  }
  if (weights.zero_points != nullptr) weights.zero_points += first_row * weights.zero_point_row_bytes;
  return weights;
}

// hidden[t * hidden_stride + m] = silu(gate row m) * (up row m) for the pairs of rows in [begin, end).
void GateUpTask(const FeedForward& network, const WeightRows& gate_up, int64_t begin, int64_t end, const void* packed,
                int64_t tokens, float* hidden) {
  alignas(64) float products[kTaskFloats];
  const Elementwise& loops = BestElementwise();
  const int64_t step = RowsThatFit(tokens);
  for (int64_t row = begin; row < end; row += step) {
    const int64_t rows = std::min(step, end - row);
    network.kernels.multiply(gate_up, network.activation, row, row + rows, packed, tokens, products, rows);
    for (int64_t t = 0; t < tokens; ++t) {
      loops.silu_multiply(products + t * rows, rows / 2, hidden + t * network.width + row / 2);
    }
  }
}

struct PackedBytes {
  int64_t input = 0;
  int64_t hidden = 0;
};

// Fills the packed offsets of `chunks`; returns the bytes of both packed forms.
PackedBytes PlacePacked(const FeedForward& network, Chunk* chunks, int64_t count) {
  PackedBytes bytes;
  const auto size = [&](const WeightRows& weights, int64_t tokens) {
    return static_cast<int64_t>(network.kernels.packed_bytes(weights, network.activation, tokens));
  };
  for (Chunk* chunk = chunks; chunk != chunks + count; ++chunk) {
    chunk->packed_input = bytes.input;
    chunk->packed_hidden = bytes.hidden;
    bytes.input += size(network.gate_up, chunk->size);
    bytes.hidden += size(network.down, chunk->size);
  }
  return bytes;
}

// results[p] = expert(x[token_of[p]]) for the positions p of all chunks; token_of null: x[p].
// `results` serves as working memory for the gathered tokens first.
void RunChunks(const FeedForward& network, Chunk* chunks, int64_t count, const float* x, const int32_t* token_of,
               int64_t positions, float* results, Scratch& scratch, Parallel& parallel) {
  const int64_t hidden = network.hidden, width = network.width;
  const PackedBytes bytes = PlacePacked(network, chunks, count);
  uint8_t* packed_input = scratch.Get<uint8_t>(Scratch::kPackedInput, bytes.input);
  uint8_t* packed_hidden = scratch.Get<uint8_t>(Scratch::kPackedHidden, bytes.hidden);
  float* activations = scratch.Get<float>(Scratch::kHidden, positions * width);

  parallel.For(count, [&](int64_t index) {
    const Chunk& chunk = chunks[index];
    const float* source = x + chunk.first * hidden;
    if (token_of != nullptr) {
      float* gathered = results + chunk.first * hidden;
      for (int64_t t = 0; t < chunk.size; ++t) {
        std::copy_n(x + token_of[chunk.first + t] * hidden, hidden, gathered + t * hidden);
      }
      source = gathered;
    }
    network.kernels.pack(network.gate_up, network.activation, source, hidden, chunk.size,
                         packed_input + chunk.packed_input);
  });

  // Where all chunks are of one expert they go innermost: a block of weights stays in the cache for all tokens.
  const bool one_expert = token_of == nullptr;
  const auto for_blocks = [&](const RowBlocks& blocks, const auto& body) {
    parallel.For(count * blocks.Count(), [&](int64_t task) {
      const int64_t chunk = one_expert ? task % count : task / blocks.Count();
      const int64_t block = one_expert ? task / count : task % blocks.Count();
      body(chunks[chunk], blocks.Begin(block), blocks.End(block));
    });
  };

  for_blocks(RowBlocks(network.gate_up, 2 * width, positions / count),
             [&](const Chunk& chunk, int64_t begin, int64_t end) {
               GateUpTask(network, OfExpert(network.gate_up, 2 * width, chunk.expert), begin, end,
                          packed_input + chunk.packed_input, chunk.size, activations + chunk.first * width);
             });

  parallel.For(count, [&](int64_t index) {
    const Chunk& chunk = chunks[index];
    network.kernels.pack(network.down, network.activation, activations + chunk.first * width, width, chunk.size,
                         packed_hidden + chunk.packed_hidden);
  });

  for_blocks(RowBlocks(network.down, hidden, positions / count), [&](const Chunk& chunk, int64_t begin, int64_t end) {
    network.kernels.multiply(OfExpert(network.down, hidden, chunk.expert), network.activation, begin, end,
                             packed_hidden + chunk.packed_hidden, chunk.size, results + chunk.first * hidden + begin,
                             hidden);
  });
}

// One token, all threads on each of its experts.
void OneToken(const FeedForward& network, const RoutingRule& rule, const int32_t* chosen, const float* weights,
              const float* x, float* y, Scratch& scratch, Parallel& parallel) {
  const int64_t hidden = network.hidden, width = network.width, top_k = rule.top_k;
  const KernelTable& kernels = network.kernels;
  const auto packed_bytes = [&](const WeightRows& rows) {
    return static_cast<int64_t>(kernels.packed_bytes(rows, network.activation, 1));
  };
  uint8_t* packed_input = scratch.Get<uint8_t>(Scratch::kPackedInput, packed_bytes(network.gate_up));
  const int64_t hidden_bytes = packed_bytes(network.down);
  uint8_t* packed_hidden = scratch.Get<uint8_t>(Scratch::kPackedHidden, hidden_bytes * top_k);
  float* activations = scratch.Get<float>(Scratch::kHidden, width * top_k);

  kernels.pack(network.gate_up, network.activation, x, hidden, 1, packed_input);
  const RowBlocks up_blocks(network.gate_up, 2 * width, 1);
  parallel.For(top_k * up_blocks.Count(), [&](int64_t task) {
    const int64_t j = task / up_blocks.Count(), block = task % up_blocks.Count();
    GateUpTask(network, OfExpert(network.gate_up, 2 * width, chosen[j]), up_blocks.Begin(block), up_blocks.End(block),
               packed_input, 1, activations + j * width);
  });

  for (int64_t j = 0; j < top_k; ++j) {
    kernels.pack(network.down, network.activation, activations + j * width, width, 1, packed_hidden + j * hidden_bytes);
  }
  const RowBlocks down_blocks(network.down, hidden, 1, top_k);
  parallel.For(down_blocks.Count(), [&](int64_t block) {
    alignas(64) float products[kTaskFloats];
    const float* parts[kMaxTopK];
    const int64_t step = RowsThatFit(top_k), end = down_blocks.End(block);
    for (int64_t row = down_blocks.Begin(block); row < end; row += step) {
      const int64_t rows = std::min(step, end - row);
      for (int64_t j = 0; j < top_k; ++j) {
        kernels.multiply(OfExpert(network.down, hidden, chosen[j]), network.activation, row, row + rows,
                         packed_hidden + j * hidden_bytes, 1, products + j * rows, rows);
        parts[j] = products + j * rows;
      }
      BestElementwise().weighted_sum(parts, weights, top_k, rows, y + row);
    }
  });
}

// Counting sort of the pairs (token, choice) by expert: token_of[position], position_of[pair], and the chunks.
int64_t GroupByExpert(const RoutingRule& rule, const int32_t* chosen, int64_t tokens, int32_t* counts,
                      int32_t* token_of, int32_t* position_of, Chunk* chunks) {
  const int64_t pairs = tokens * rule.top_k;
  std::fill_n(counts, rule.experts, 0);
  for (int64_t pair = 0; pair < pairs; ++pair) ++counts[chosen[pair]];
  int64_t position = 0, chunk_count = 0;
  for (int64_t expert = 0; expert < rule.experts; ++expert) {
    const TokenChunks parts{counts[expert]};
    for (int64_t part = 0; parts.tokens > 0 && part < parts.Count(); ++part) {
      chunks[chunk_count++] = {expert, position + parts.Begin(part), parts.Size(part), 0, 0};
    }
    counts[expert] = static_cast<int32_t>(position);
    position += parts.tokens;
  }
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int32_t place = counts[chosen[pair]]++;
    token_of[place] = static_cast<int32_t>(pair / rule.top_k);
    position_of[pair] = place;
  }
  return chunk_count;
}

void SeveralTokens(const FeedForward& experts, const RoutingRule& rule, const int32_t* chosen, const float* weights,
                   const float* x, int64_t tokens, float* y, Scratch& scratch, Parallel& parallel) {
  const int64_t pairs = tokens * rule.top_k, hidden = experts.hidden;
  const int64_t most_chunks = rule.experts + pairs / TokenChunks::kSize;
  Chunk* chunks = scratch.Get<Chunk>(Scratch::kChunks, most_chunks);
  int32_t* counts = scratch.Get<int32_t>(Scratch::kGroups, rule.experts + 2 * pairs);
  int32_t* token_of = counts + rule.experts;
  int32_t* position_of = token_of + pairs;
  const int64_t count = GroupByExpert(rule, chosen, tokens, counts, token_of, position_of, chunks);

  float* results = scratch.Get<float>(Scratch::kResults, pairs * hidden);
  RunChunks(experts, chunks, count, x, token_of, pairs, results, scratch, parallel);

  constexpr int64_t kTokensPerTask = 8;
  parallel.For((tokens + kTokensPerTask - 1) / kTokensPerTask, [&](int64_t task) {
    const float* parts[kMaxTopK];
    const int64_t end = std::min(tokens, (task + 1) * kTokensPerTask);
    for (int64_t t = task * kTokensPerTask; t < end; ++t) {
      for (int64_t j = 0; j < rule.top_k; ++j) parts[j] = results + position_of[t * rule.top_k + j] * hidden;
      BestElementwise().weighted_sum(parts, weights + t * rule.top_k, rule.top_k, hidden, y + t * hidden);
    }
  });
}

}  // namespace

void DenseFeedForward(const FeedForward& network, const float* x, int64_t tokens, float* y, Scratch& scratch,
                      Parallel& parallel) {
  if (tokens == 0) return;
  const TokenChunks portions{tokens, kTokensAtOnce};
  for (int64_t portion = 0; portion < portions.Count(); ++portion) {
    const TokenChunks parts{portions.Size(portion)};
    Chunk* chunks = scratch.Get<Chunk>(Scratch::kChunks, parts.Count());
    for (int64_t part = 0; part < parts.Count(); ++part) chunks[part] = {0, parts.Begin(part), parts.Size(part), 0, 0};
    const int64_t offset = portions.Begin(portion) * network.hidden;
    RunChunks(network, chunks, parts.Count(), x + offset, nullptr, parts.tokens, y + offset, scratch, parallel);
  }
}

void SparseFeedForward(const FeedForward& experts, const Router& router, const float* x, int64_t tokens, float* y,
                       Scratch& scratch, Parallel& parallel) {
  if (tokens == 0) return;
  const RoutingRule& rule = router.rule;
  const TokenChunks portions{tokens, kTokensAtOnce};
  for (int64_t portion = 0; portion < portions.Count(); ++portion) {
    const int64_t count = portions.Size(portion);
    const float* input = x + portions.Begin(portion) * experts.hidden;
    float* output = y + portions.Begin(portion) * experts.hidden;

    float* logits = scratch.Get<float>(Scratch::kScores, 2 * count * rule.experts);
    float* scores = logits + count * rule.experts;
    Linear(experts.kernels, router.weight, rule.experts, ActivationType::kFloat32, input, count, nullptr, logits,
           Scratch::kPackedInput, scratch, parallel);
    float* weights = scratch.Get<float>(Scratch::kRouting, 2 * count * rule.top_k);
    int32_t* chosen = reinterpret_cast<int32_t*>(weights + count * rule.top_k);
    constexpr int64_t kTokensPerTask = 32;
    parallel.For((count + kTokensPerTask - 1) / kTokensPerTask, [&](int64_t task) {
      const int64_t end = std::min(count, (task + 1) * kTokensPerTask);
      for (int64_t t = task * kTokensPerTask; t < end; ++t) {
        Route(rule, logits + t * rule.experts, router.bias, scores + t * rule.experts, chosen + t * rule.top_k,
              weights + t * rule.top_k);
      }
    });

    if (count == 1) {
      OneToken(experts, rule, chosen, weights, input, output, scratch, parallel);
    } else {
      SeveralTokens(experts, rule, chosen, weights, input, count, output, scratch, parallel);
    }
  }
}

}  // namespace lfm
