// C entry points to each kernel table for tests: a library of its own, never part of the shipped one.
#include <string>

#include "elementwise.h"
#include "isa_dispatch.h"

#if defined(_WIN32)
#define LFM_TEST_EXPORT extern "C" __declspec(dllexport)
#else
#define LFM_TEST_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

// Plain C layout of WeightRows; `type` is the value of WeightType.
struct TestWeights {
  int32_t type;
  int32_t block_size;
  int64_t columns;
  int64_t blocks;
  const void* data;
  int64_t row_bytes;
  const void* scales;
  int64_t scales_are_float16;
  const uint8_t* zero_points;
  int64_t zero_point_row_bytes;
};

lfm::WeightRows Rows(const TestWeights& weights) {
  return {static_cast<lfm::WeightType>(weights.type),
          weights.columns,
          weights.block_size,
          weights.blocks,
          weights.data,
          weights.row_bytes,
          weights.scales,
          weights.scales_are_float16 != 0,
          weights.zero_points,
          weights.zero_point_row_bytes};
}

lfm::ActivationType Activation(int activation_bits) {
  return activation_bits == 8 ? lfm::ActivationType::kInt8PerBlock : lfm::ActivationType::kFloat32;
}

}  // namespace

// Names of the tables that can run here, comma-separated, the best first.
LFM_TEST_EXPORT const char* lfm_test_isas() {
  static const std::string names = [] {
    std::string joined;
    for (const std::string& name : lfm::AvailableKernels()) joined += (joined.empty() ? "" : ",") + name;
    return joined;
  }();
  return names.c_str();
}

// Why kernels that the CPU has instructions for are not among them.
LFM_TEST_EXPORT const char* lfm_test_refused() { return lfm::RefusedKernels(); }

// Bytes of the packed form; 0 where the instruction set is not available.
LFM_TEST_EXPORT uint64_t lfm_test_packed_bytes(const char* isa, const TestWeights* weights, int activation_bits,
                                               int64_t tokens) {
  const lfm::KernelTable* table = lfm::FindKernels(isa);
  return table == nullptr ? 0 : table->packed_bytes(Rows(*weights), Activation(activation_bits), tokens);
}

LFM_TEST_EXPORT int lfm_test_pack(const char* isa, const TestWeights* weights, int activation_bits, const float* x,
                                  int64_t x_stride, int64_t tokens, void* packed) {
  const lfm::KernelTable* table = lfm::FindKernels(isa);
  if (table == nullptr) return 1;
  table->pack(Rows(*weights), Activation(activation_bits), x, x_stride, tokens, packed);
  return 0;
}

LFM_TEST_EXPORT int lfm_test_multiply(const char* isa, const TestWeights* weights, int activation_bits,
                                      int64_t row_begin, int64_t row_end, const void* packed, int64_t tokens, float* y,
                                      int64_t y_stride) {
  const lfm::KernelTable* table = lfm::FindKernels(isa);
  if (table == nullptr) return 1;
  table->multiply(Rows(*weights), Activation(activation_bits), row_begin, row_end, packed, tokens, y, y_stride);
  return 0;
}

// gate_up [2 * count] in pairs → out [count], by the loops compiled for `isa` ("" = baseline, avx2, avx512).
LFM_TEST_EXPORT int lfm_test_silu_multiply(const char* isa, const float* gate_up, int64_t count, float* out) {
  const lfm::Elementwise* table = lfm::FindElementwise(isa);
  if (table == nullptr) return 1;
  table->silu_multiply(gate_up, count, out);
  return 0;
}
