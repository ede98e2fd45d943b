// Speed of the kernel tables alone: decode in GB/s of weights, prefill in GMAC/s, beside plain reads of memory.
//
// Build and run from the root of the repository (the figures take about 2 minutes):
//   C=runtime/native/compute; O=/tmp/kernel_benchmark
//   V="-mavx2 -mfma -mf16c"; F="-O3 -std=c++17 -ffp-contract=off -I$C"
//   g++ $F $V -c $C/kernels_avx2.cc -o $O-avx2.o
//   g++ $F $V -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -c $C/kernels_avx512vnni.cc -o $O-avx512.o
//   g++ $F benchmarks/kernels/kernel_benchmark.cc $C/kernels_scalar.cc $O-avx2.o $O-avx512.o -pthread -o $O
//   $O [seconds per figure, default 0.3] [only this table: scalar, avx2, avx512vnni; default: the last two]
//
// Each figure is the best of the repetitions, so that other work on the machine disturbs it least. One repetition reads
// a slice of the matrix, about a millisecond's worth; the slices follow each other, so that each has left the caches
// when its turn comes again.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernel_table.h"

namespace {

using lfm::ActivationType;
using lfm::KernelTable;
using lfm::WeightRows;
using lfm::WeightType;

constexpr int64_t kColumns = 2048;
constexpr int64_t kStreamedBytes = int64_t{256} << 20;  // far beyond any cache
constexpr int64_t kSlices = 16;                         // of what is streamed for one token
constexpr int64_t kPrefillSlices = 256;                 // ... for many
constexpr int64_t kCachedBytes = int64_t{512} << 10;    // inside an L2 cache
constexpr int kMaxThreads = 2;

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); }

// Best time of `work(thread, repeat)` run by all threads at once, repeated for about `budget` seconds.
double BestSeconds(int threads, double budget, const std::function<void(int, int)>& work) {
  double best = 1e9;
  std::atomic<int> round{0};
  std::atomic<int> finished{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) {
    others.emplace_back([&, thread] {
      for (int seen = 0;;) {
        while (round.load(std::memory_order_acquire) == seen && !stop.load()) {
        }
        if (stop.load()) return;
        work(thread, seen++);
        finished.fetch_add(1, std::memory_order_release);
      }
    });
  }
  const Clock::time_point start = Clock::now();
  for (int repeat = 0; repeat < 8 || Seconds(start) < budget; ++repeat) {
    finished.store(0);
    const Clock::time_point begin = Clock::now();
    round.fetch_add(1, std::memory_order_release);
    work(0, repeat);
    while (finished.load(std::memory_order_acquire) != threads - 1) {
    }
    const double seconds = Seconds(begin);
    if (seconds < best) best = seconds;
  }
  stop.store(true);
  for (std::thread& other : others) other.join();
  return best;
}

struct Aligned {
  explicit Aligned(size_t bytes) : storage(new uint8_t[bytes + 64]) {
    data = storage.get() + (64 - reinterpret_cast<uintptr_t>(storage.get()) % 64) % 64;
  }
  std::unique_ptr<uint8_t[]> storage;
  uint8_t* data;
};

// A matrix of about `bytes` bytes with random codes; float weights are small numbers.
struct Matrix {
  Matrix(WeightType type, int block_size, bool zero_points, bool half_scales, int64_t bytes)
      : codes(static_cast<size_t>(bytes) + 65536), scales(1), zeros(1) {
    rows.type = type;
    rows.columns = kColumns;
    const bool integer = type == WeightType::kInt8 || type == WeightType::kInt4;
    const int64_t bits = type == WeightType::kInt4      ? 4
                         : type == WeightType::kInt8    ? 8
                         : type == WeightType::kFloat16 ? 16
                                                        : 32;
    rows.row_bytes = kColumns * bits / 8;
    count = bytes / rows.row_bytes;
    uint32_t state = 1;
    for (int64_t i = 0; i < count * rows.row_bytes; i += 4) {
      state = state * 1664525u + 1013904223u;
      uint32_t value = state;
      if (type == WeightType::kFloat32) value = 0x3c000000u | state >> 9;
      if (type == WeightType::kFloat16) value = (state & 0x03ff03ffu) | 0x20002000u;
      std::memcpy(codes.data + i, &value, 4);
    }
    rows.data = codes.data;
    if (integer) {
      rows.block_size = block_size;
      rows.blocks = kColumns / block_size;
      rows.scales_are_float16 = half_scales;
      const size_t scale_bytes = static_cast<size_t>(count * rows.blocks) * (half_scales ? 2 : 4);
      scales = Aligned(scale_bytes);
      for (size_t i = 0; i < scale_bytes; i += 4) {
        const uint32_t value = half_scales ? 0x20012002u : 0x3c123456u;
        std::memcpy(scales.data + i, &value, 4);
      }
      rows.scales = scales.data;
      if (zero_points) {
        rows.zero_point_row_bytes = (rows.blocks * bits + 7) / 8;
        zeros = Aligned(static_cast<size_t>(count * rows.zero_point_row_bytes));
        std::memset(zeros.data, 0x77, static_cast<size_t>(count * rows.zero_point_row_bytes));
        rows.zero_points = zeros.data;
      }
    }
  }

  int64_t RowBytes() const {
    return rows.row_bytes + rows.blocks * (rows.scales_are_float16 ? 2 : 4) + rows.zero_point_row_bytes;
  }

  Aligned codes, scales, zeros;
  WeightRows rows{};
  int64_t count = 0;
};

// Seconds per row of `matrix` times `tokens` tokens; one repetition takes one of `slices` parts of the rows.
double SecondsPerRow(const KernelTable& table, const Matrix& matrix, ActivationType activation, int64_t tokens,
                     int threads, int64_t slices, double budget) {
  std::vector<float> x(static_cast<size_t>(tokens * kColumns));
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(static_cast<int>(i * 37 % 201) - 100) * 0.01f;
  Aligned packed(table.packed_bytes(matrix.rows, activation, tokens));
  table.pack(matrix.rows, activation, x.data(), kColumns, tokens, packed.data);
  std::vector<float> y(static_cast<size_t>(tokens * (matrix.count / slices)));
  const int64_t rows = matrix.count / slices;
  const double seconds = BestSeconds(threads, budget, [&](int thread, int repeat) {
    const int64_t first = repeat % slices * rows;
    const int64_t begin = rows * thread / threads;
    const int64_t end = rows * (thread + 1) / threads;
    table.multiply(matrix.rows, activation, first + begin, first + end, packed.data, tokens, y.data() + begin, rows);
  });
  return seconds / static_cast<double>(rows);
}

double ReadBandwidth(const Aligned& memory, int threads, double budget) {
  static std::atomic<uint64_t> sink{0};
  constexpr int64_t kWords = kStreamedBytes / 8 / kSlices;
  const double seconds = BestSeconds(threads, budget, [&](int thread, int repeat) {
    const int64_t count = kWords / threads;
    const uint64_t* words = reinterpret_cast<const uint64_t*>(memory.data) + repeat % kSlices * kWords + thread * count;
    uint64_t sums[8] = {};
    for (int64_t i = 0; i + 8 <= count; i += 8) {
      __builtin_prefetch(words + i + 512);
      for (int j = 0; j < 8; ++j) sums[j] += words[i + j];
    }
    for (uint64_t sum : sums) sink += sum;
  });
  return static_cast<double>(kWords * 8) / seconds * 1e-9;
}

struct Case {
  const char* name;
  WeightType type;
  int block_size;
  bool zero_points;
  bool half_scales;
  ActivationType activation;
};

const Case kCases[] = {
    {"int4 b32", WeightType::kInt4, 32, false, true, ActivationType::kInt8PerBlock},
    {"int4 b32 fp32 scales", WeightType::kInt4, 32, false, false, ActivationType::kInt8PerBlock},
    {"int4 b32 zero points", WeightType::kInt4, 32, true, true, ActivationType::kInt8PerBlock},
    {"int4 b128", WeightType::kInt4, 128, false, true, ActivationType::kInt8PerBlock},
    {"int8 b32", WeightType::kInt8, 32, false, true, ActivationType::kInt8PerBlock},
    {"int8 b32 zero points", WeightType::kInt8, 32, true, true, ActivationType::kInt8PerBlock},
    {"float16", WeightType::kFloat16, 0, false, false, ActivationType::kFloat32},
    {"float32", WeightType::kFloat32, 0, false, false, ActivationType::kFloat32},
    {"int4 b32, float path", WeightType::kInt4, 32, false, true, ActivationType::kFloat32},
    {"int8 b32, float path", WeightType::kInt8, 32, false, true, ActivationType::kFloat32},
};

void Decode(const std::vector<const KernelTable*>& tables, double budget) {
  std::printf("\ndecode, 1 token, GB/s of weights with their scales   from memory: 1, 2 threads   from L2: 1 thread\n");
  for (const Case& c : kCases) {
    const Matrix streamed(c.type, c.block_size, c.zero_points, c.half_scales, kStreamedBytes);
    const Matrix cached(c.type, c.block_size, c.zero_points, c.half_scales, kCachedBytes);
    const auto rate = [&](const KernelTable& table, const Matrix& matrix, int threads, int64_t slices) {
      const double seconds = SecondsPerRow(table, matrix, c.activation, 1, threads, slices, budget);
      return static_cast<double>(matrix.RowBytes()) / seconds * 1e-9;
    };
    for (const KernelTable* table : tables) {
      std::printf("%-22s %-11s %8.1f %8.1f %8.1f\n", c.name, table->name, rate(*table, streamed, 1, kSlices),
                  rate(*table, streamed, kMaxThreads, kSlices), rate(*table, cached, 1, 1));
      std::fflush(stdout);
    }
  }
}

void Prefill(const std::vector<const KernelTable*>& tables, double budget) {
  const int64_t cached_tokens[] = {4, 8, 13, 32, 100, 512};
  const int64_t streamed_tokens[] = {4, 16, 64};
  std::printf("\nprefill, GMAC/s: weights from L2, then from memory, 1 thread; from L2, 2 threads\n%-34s", "tokens");
  for (int64_t tokens : cached_tokens) std::printf(" %7d", static_cast<int>(tokens));
  for (int64_t tokens : streamed_tokens) std::printf(" mem%4d", static_cast<int>(tokens));
  std::printf("   2 x 512\n");
  for (const Case& c : kCases) {
    const Matrix cached(c.type, c.block_size, c.zero_points, c.half_scales, kCachedBytes);
    const Matrix streamed(c.type, c.block_size, c.zero_points, c.half_scales, kStreamedBytes);
    const auto rate = [&](const KernelTable& table, const Matrix& matrix, int64_t tokens, int threads, int64_t slices) {
      const double seconds = SecondsPerRow(table, matrix, c.activation, tokens, threads, slices, budget);
      return static_cast<double>(kColumns * tokens) / seconds * 1e-9;
    };
    for (const KernelTable* table : tables) {
      std::printf("%-22s %-11s", c.name, table->name);
      for (int64_t tokens : cached_tokens) std::printf(" %7.1f", rate(*table, cached, tokens, 1, 1));
      for (int64_t tokens : streamed_tokens) std::printf(" %7.1f", rate(*table, streamed, tokens, 1, kPrefillSlices));
      std::printf("   %7.1f\n", rate(*table, cached, 512, kMaxThreads, 1));
      std::fflush(stdout);
    }
  }
}

void Packing(const std::vector<const KernelTable*>& tables, double budget) {
  std::printf("\npacking of activations, ns per token of %d values: 1 token, 512 tokens\n", static_cast<int>(kColumns));
  const Matrix matrix(WeightType::kInt4, 32, false, true, 65536);
  std::vector<float> x(512 * kColumns, 0.25f);
  for (const KernelTable* table : tables) {
    std::printf("%-34s", table->name);
    for (int64_t tokens : {1, 512}) {
      Aligned packed(table->packed_bytes(matrix.rows, ActivationType::kInt8PerBlock, tokens));
      const double seconds = BestSeconds(1, budget, [&](int, int) {
        table->pack(matrix.rows, ActivationType::kInt8PerBlock, x.data(), kColumns, tokens, packed.data);
      });
      std::printf(" %7.0f", seconds / static_cast<double>(tokens) * 1e9);
    }
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) {
  const double budget = argc > 1 ? std::atof(argv[1]) : 0.3;
  const std::string only = argc > 2 ? argv[2] : "";
  std::vector<const KernelTable*> tables;
  for (const KernelTable* table : {lfm::ScalarKernels(), lfm::Avx2Kernels(), lfm::Avx512VnniKernels()}) {
    if (table != nullptr && (only.empty() ? table != lfm::ScalarKernels() : only == table->name)) {
      tables.push_back(table);
    }
  }
  const Aligned memory(kStreamedBytes);
  std::memset(memory.data, 1, kStreamedBytes);
  const auto report_reads = [&] {
    std::printf("plain reads of memory, GB/s: %.1f (1 thread), %.1f (%d threads)\n", ReadBandwidth(memory, 1, budget),
                ReadBandwidth(memory, kMaxThreads, budget), kMaxThreads);
  };
  report_reads();
  Decode(tables, budget);
  report_reads();
  Prefill(tables, budget);
  Packing(tables, budget);
  return 0;
}
