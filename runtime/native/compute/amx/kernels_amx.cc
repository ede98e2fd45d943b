// Kernels for x86-64 with AMX: tiles multiply where there are tokens enough, AVX512-VNNI does everything else.
#include "kernel_table.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && \
    defined(__AVX512VNNI__)
#include "amx/amx_tile.h"
#endif

#if defined(LFM_AMX_TILES) && LFM_AMX_TILES

#include "amx/amx_multiply.h"

namespace lfm {
namespace {

bool UsesTiles(const WeightRows& weights, ActivationType activation, int64_t tokens) {
  return tokens >= kTileTokens && QuantizesActivations(weights, activation);
}

size_t AmxTablePackedBytes(const WeightRows& weights, ActivationType activation, int64_t tokens) {
  if (!UsesTiles(weights, activation, tokens)) {
    return Avx512VnniKernels()->packed_bytes(weights, activation, tokens);
  }
  return static_cast<size_t>(AmxPackedBytes(weights, tokens));
}

void AmxTablePack(const WeightRows& weights, ActivationType activation, const float* x, int64_t x_stride,
                  int64_t tokens, void* packed) {
  if (!UsesTiles(weights, activation, tokens)) {
    return Avx512VnniKernels()->pack(weights, activation, x, x_stride, tokens, packed);
  }
  const auto pack = weights.type == WeightType::kInt4 ? PackAmx<4> : PackAmx<8>;
  pack(weights, x, x_stride, tokens, static_cast<uint8_t*>(packed));
}

template <int kBlock>
void MultiplyBlocks(const WeightRows& weights, int64_t row_begin, int64_t row_end, const uint8_t* packed,
                    int64_t tokens, float* y, int64_t y_stride) {
  const auto multiply = weights.type == WeightType::kInt4 ? MultiplyAmx<4, kBlock, false>
                        : CorrectsSums(weights)           ? MultiplyAmx<8, kBlock, true>
                                                          : MultiplyAmx<8, kBlock, false>;
  multiply(weights, row_begin, row_end, packed, tokens, y, y_stride);
}

void AmxTableMultiply(const WeightRows& weights, ActivationType activation, int64_t row_begin, int64_t row_end,
                      const void* packed, int64_t tokens, float* y, int64_t y_stride) {
  if (!UsesTiles(weights, activation, tokens)) {
    return Avx512VnniKernels()->multiply(weights, activation, row_begin, row_end, packed, tokens, y, y_stride);
  }
  if (row_begin >= row_end) return;
  const auto multiply = weights.block_size == 32   ? MultiplyBlocks<32>
                        : weights.block_size == 64 ? MultiplyBlocks<64>
                                                   : MultiplyBlocks<128>;
  multiply(weights, row_begin, row_end, static_cast<const uint8_t*>(packed), tokens, y, y_stride);
}

}  // namespace

const KernelTable* AmxKernels() {
  if (Avx512VnniKernels() == nullptr) return nullptr;
  static const KernelTable table = [] {
    KernelTable changed = *Avx512VnniKernels();
#if defined(LFM_AMX_EMULATED)
    changed.name = "amx-emulated";
#else
    changed.name = "amx";
#endif
    changed.packed_bytes = AmxTablePackedBytes;
    changed.pack = AmxTablePack;
    changed.multiply = AmxTableMultiply;
    return changed;
  }();
  return &table;
}

}  // namespace lfm

#else

namespace lfm {
const KernelTable* AmxKernels() { return nullptr; }
}  // namespace lfm

#endif
