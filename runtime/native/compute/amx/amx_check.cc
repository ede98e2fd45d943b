// Small products of made-up numbers through two tables, compared bit by bit.
#include "amx/amx_check.h"

#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace lfm {
namespace {

// More than one tile of rows and of tokens, more than one chunk of columns, and a part of each.
constexpr int64_t kRows = 37, kColumns = 600, kTokens = 21;

// A linear congruential generator: the same bytes everywhere.
class Bytes {
 public:
  uint8_t Next() {
    state_ = state_ * 1664525u + 1013904223u;
    return static_cast<uint8_t>(state_ >> 24);
  }
  std::vector<uint8_t> Vector(int64_t count) {
    std::vector<uint8_t> bytes(static_cast<size_t>(count));
    for (uint8_t& byte : bytes) byte = Next();
    return bytes;
  }
  std::vector<float> Floats(int64_t count) {
    std::vector<float> floats(static_cast<size_t>(count));
    for (float& value : floats) value = static_cast<float>(Next() - 128) / 64.0f + static_cast<float>(Next()) / 4096.0f;
    return floats;
  }

 private:
  uint32_t state_ = 1;
};

struct Free {
  void operator()(void* bytes) const { ::operator delete(bytes, std::align_val_t{64}); }
};

std::vector<float> Product(const KernelTable& table, const WeightRows& weights, const std::vector<float>& x) {
  constexpr ActivationType kActivation = ActivationType::kInt8PerBlock;
  const size_t size = table.packed_bytes(weights, kActivation, kTokens);
  const std::unique_ptr<void, Free> packed(::operator new(size, std::align_val_t{64}));
  table.pack(weights, kActivation, x.data(), kColumns, kTokens, packed.get());
  std::vector<float> y(static_cast<size_t>(kTokens * kRows));
  table.multiply(weights, kActivation, 0, kRows, packed.get(), kTokens, y.data(), kRows);
  return y;
}

bool GiveSameProduct(const KernelTable& table, const KernelTable& reference, WeightType type, int block_size) {
  Bytes source;
  const int bits = type == WeightType::kInt4 ? 4 : 8;
  WeightRows weights = {};
  weights.type = type;
  weights.columns = kColumns;
  weights.block_size = block_size;
  weights.blocks = (kColumns + block_size - 1) / block_size;
  weights.row_bytes = weights.blocks * block_size * bits / 8;
  weights.zero_point_row_bytes = (weights.blocks * bits + 7) / 8;
  const std::vector<uint8_t> data = source.Vector(kRows * weights.row_bytes);
  const std::vector<float> scales = source.Floats(kRows * weights.blocks);
  const std::vector<uint8_t> zero_points = source.Vector(kRows * weights.zero_point_row_bytes);
  weights.data = data.data();
  weights.scales = scales.data();
  weights.zero_points = zero_points.data();
  const std::vector<float> x = source.Floats(kTokens * kColumns);
  const std::vector<float> found = Product(table, weights, x), expected = Product(reference, weights, x);
  return std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0;
}

}  // namespace

bool GiveSameProducts(const KernelTable& table, const KernelTable& reference) {
  try {
    for (const WeightType type : {WeightType::kInt4, WeightType::kInt8}) {
      for (const int block_size : {32, 64, 128}) {
        if (!GiveSameProduct(table, reference, type, block_size)) return false;
      }
    }
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

}  // namespace lfm
