// Every kernel table that this CPU has equals the scalar one to the last bit, on random shapes, formats and inputs.
//
// usage: kernel_tables_test EXPECTED_TABLES [CASES]    EXPECTED_TABLES: such as i8mm,dotprod,neon,scalar, best first;
//        "any": whatever this CPU has; "list": only print its tables
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#if !defined(_WIN32)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "isa_dispatch.h"

namespace {

using lfm::ActivationType;
using lfm::KernelTable;
using lfm::WeightRows;
using lfm::WeightType;

std::mt19937 generator(20240607);

int64_t Uniform(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }
float Normal() { return std::normal_distribution<float>()(generator); }

// Bytes that end where memory ends, as the last tensor of a mapped file does: reading on is a fault.
class LastBytes {
 public:
#if defined(_WIN32)
  void Allocate(int64_t size) {
    bytes_.reset(new uint8_t[static_cast<size_t>(size)]);
    data_ = bytes_.get();
    size_ = size;
  }
#else
  LastBytes() = default;
  LastBytes(const LastBytes&) = delete;
  LastBytes& operator=(const LastBytes&) = delete;
  ~LastBytes() {
    if (mapped_ != nullptr) munmap(mapped_, mapped_size_);
  }
  void Allocate(int64_t size) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t used = (static_cast<size_t>(size) + page - 1) / page * page;
    mapped_size_ = used + page;
    mapped_ = mmap(nullptr, mapped_size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped_ == MAP_FAILED || mprotect(static_cast<uint8_t*>(mapped_) + used, page, PROT_NONE) != 0) std::abort();
    data_ = static_cast<uint8_t*>(mapped_) + used - size;
    size_ = size;
  }
#endif
  uint8_t* data() const { return data_; }
  void FillRandomly() {
    for (int64_t i = 0; i < size_; ++i) data_[i] = static_cast<uint8_t>(generator());
  }

 private:
#if defined(_WIN32)
  std::unique_ptr<uint8_t[]> bytes_;
#else
  void* mapped_ = nullptr;
  size_t mapped_size_ = 0;
#endif
  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

struct Matrix {
  WeightRows view;
  int64_t rows;
  LastBytes data, scales, zero_points;
};

// Finite halves of both signs, subnormal ones among them.
uint16_t RandomHalf() {
  return static_cast<uint16_t>((generator() & 0x83ff) | static_cast<unsigned>(Uniform(0, 20)) << 10);
}

std::unique_ptr<Matrix> RandomMatrix(WeightType type, int block_size, bool half_scales, bool zero_points) {
  auto matrix = std::make_unique<Matrix>();
  matrix->rows = Uniform(1, 13);
  WeightRows& view = matrix->view;
  view = {};
  view.type = type;
  view.columns = Uniform(0, 9) == 0 ? 512 * Uniform(1, 4) : Uniform(1, 400);
  if (type == WeightType::kFloat32 || type == WeightType::kFloat16) {
    view.row_bytes = view.columns * (type == WeightType::kFloat32 ? 4 : 2);
    matrix->data.Allocate(matrix->rows * view.row_bytes);
    for (int64_t i = 0; i < matrix->rows * view.columns; ++i) {
      const float value = Normal();
      const uint16_t half = RandomHalf();
      if (type == WeightType::kFloat32) std::memcpy(matrix->data.data() + 4 * i, &value, 4);
      if (type == WeightType::kFloat16) std::memcpy(matrix->data.data() + 2 * i, &half, 2);
    }
  } else {
    const int bits = type == WeightType::kInt4 ? 4 : 8;
    view.block_size = block_size;
    view.blocks = (view.columns + block_size - 1) / block_size;
    view.row_bytes = view.blocks * block_size * bits / 8;
    matrix->data.Allocate(matrix->rows * view.row_bytes);
    matrix->data.FillRandomly();
    view.scales_are_float16 = half_scales;
    matrix->scales.Allocate(matrix->rows * view.blocks * (half_scales ? 2 : 4));
    for (int64_t i = 0; i < matrix->rows * view.blocks; ++i) {
      const float value = Normal() / 64;
      const uint16_t half = RandomHalf();
      if (half_scales) std::memcpy(matrix->scales.data() + 2 * i, &half, 2);
      if (!half_scales) std::memcpy(matrix->scales.data() + 4 * i, &value, 4);
    }
    view.scales = matrix->scales.data();
    if (zero_points) {
      view.zero_point_row_bytes = (view.blocks * bits + 7) / 8;
      matrix->zero_points.Allocate(matrix->rows * view.zero_point_row_bytes);
      matrix->zero_points.FillRandomly();
      view.zero_points = matrix->zero_points.data();
    }
  }
  view.data = matrix->data.data();
  return matrix;
}

std::vector<float> RandomActivations(int64_t count) {
  std::vector<float> x(static_cast<size_t>(count));
  const float size = std::exp2(static_cast<float>(Uniform(-30, 30)));
  for (float& value : x) value = Normal() * size;
  if (Uniform(0, 3) == 0) {
    // Halves beside a largest value of 127 in every block: each stands between two codes.
    for (float& value : x) value = static_cast<float>(Uniform(-127, 126)) + 0.5f;
    for (size_t i = 0; i < x.size(); i += 32) x[i] = 127.0f;
  }
  const float special[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                           -std::numeric_limits<float>::infinity(), 1e-40f, -0.0f};
  if (Uniform(0, 3) == 0) x[static_cast<size_t>(Uniform(0, count - 1))] = special[Uniform(0, 4)];
  if (Uniform(0, 3) == 0) std::fill(x.begin(), x.begin() + Uniform(0, count), Uniform(0, 1) ? 0.0f : 1e-38f);
  return x;
}

constexpr float kUntouched = -12345.0f;
constexpr size_t kGuard = 64;

// All products of `matrix` with x by `table`, the rows in two calls; ends the program where it writes out of bounds.
std::vector<float> Products(const KernelTable& table, const Matrix& matrix, ActivationType activation,
                            const std::vector<float>& x, int64_t x_stride, int64_t tokens, int64_t split) {
  const size_t bytes = table.packed_bytes(matrix.view, activation, tokens);
  std::vector<uint8_t> storage(bytes + kGuard + 64, 0xa5);
  uint8_t* packed = storage.data() + (64 - reinterpret_cast<uintptr_t>(storage.data()) % 64) % 64;
  table.pack(matrix.view, activation, x.data(), x_stride, tokens, packed);
  const int64_t y_stride = matrix.rows + 3;
  std::vector<float> y(static_cast<size_t>(tokens * y_stride), kUntouched);
  if (split > 0) table.multiply(matrix.view, activation, 0, split, packed, tokens, y.data(), y_stride);
  if (split < matrix.rows) {
    table.multiply(matrix.view, activation, split, matrix.rows, packed, tokens, y.data() + split, y_stride);
  }
  bool inside = bytes % 64 == 0;
  for (size_t i = 0; i < kGuard; ++i) inside = inside && packed[bytes + i] == 0xa5;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t r = matrix.rows; r < y_stride; ++r) {
      inside = inside && y[static_cast<size_t>(t * y_stride + r)] == kUntouched;
    }
  }
  if (!inside) {
    std::printf("FAIL: table %s writes beyond its outputs or its packed bytes\n", table.name);
    std::exit(1);
  }
  return y;
}

bool SameBits(float a, float b) { return std::memcmp(&a, &b, sizeof(a)) == 0 || (std::isnan(a) && std::isnan(b)); }

int64_t CompareTables(int64_t cases) {
  const char* const type_names[] = {"float32", "float16", "int8", "int4"};
  const KernelTable& scalar = *lfm::ScalarKernels();
  int64_t compared = 0;
  for (int64_t i = 0; i < cases; ++i) {
    const auto type = static_cast<WeightType>(Uniform(0, 4) % 4);
    const int block_size = 32 << Uniform(0, 2);
    const bool half_scales = Uniform(0, 1), zero_points = Uniform(0, 1);
    const auto matrix = RandomMatrix(type, block_size, half_scales, zero_points);
    const auto activation = Uniform(0, 3) ? ActivationType::kInt8PerBlock : ActivationType::kFloat32;
    const int64_t tokens = Uniform(0, 1) ? Uniform(1, 3) : Uniform(4, 19);
    const int64_t x_stride = matrix->view.columns + Uniform(0, 5), split = Uniform(0, matrix->rows);
    const std::vector<float> x = RandomActivations(tokens * x_stride);
    const std::vector<float> expected = Products(scalar, *matrix, activation, x, x_stride, tokens, matrix->rows);
    for (const std::string& name : lfm::AvailableKernels()) {
      const KernelTable& table = *lfm::FindKernels(name.c_str());
      const std::vector<float> y = Products(table, *matrix, activation, x, x_stride, tokens, split);
      for (size_t j = 0; j < y.size(); ++j) {
        if (SameBits(y[j], expected[j])) continue;
        std::printf(
            "FAIL: %s, case %lld: %s weights, block %d, %s scales, zero points %d, %s activations, K %lld, "
            "rows %lld, tokens %lld: output %zu is %.9g, scalar gives %.9g\n",
            name.c_str(), static_cast<long long>(i), type_names[static_cast<int>(type)], block_size,
            half_scales ? "float16" : "float32", zero_points,
            activation == ActivationType::kFloat32 ? "float32" : "int8", static_cast<long long>(matrix->view.columns),
            static_cast<long long>(matrix->rows), static_cast<long long>(tokens), j, static_cast<double>(y[j]),
            static_cast<double>(expected[j]));
        std::exit(1);
      }
      compared += static_cast<int64_t>(y.size());
    }
  }
  return compared;
}

}  // namespace

int main(int argc, char** argv) {
  std::string available;
  for (const std::string& name : lfm::AvailableKernels()) available += (available.empty() ? "" : ",") + name;
  const std::string expected = argc < 2 ? "(none)" : argv[1];
  if (expected == "list") {
    std::printf("%s\n", available.c_str());
    return 0;
  }
  if (expected != "any" && expected != available) {
    std::printf("FAIL: this CPU's tables are %s, expected %s\n", available.c_str(), expected.c_str());
    return 1;
  }
  const std::string chosen = lfm::SelectKernels().name;
  const char* forced = std::getenv("LFM_OPS_ISA");
  if (chosen != (forced != nullptr ? std::string(forced) : available.substr(0, available.find(',')))) {
    std::printf("FAIL: %s was chosen among %s\n", chosen.c_str(), available.c_str());
    return 1;
  }
  const int64_t compared = CompareTables(argc > 2 ? std::atoll(argv[2]) : 400);
  std::printf("ok: %s; chosen %s; %lld outputs equal to the scalar table's\n", available.c_str(), chosen.c_str(),
              static_cast<long long>(compared));
  return 0;
}
