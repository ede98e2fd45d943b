// Statements about the kernels that hold without ONNX Runtime; meant to run under the sanitizers.
//
// Every tensor is an allocation of exactly its size, so that the address sanitizer sees a read beyond its end.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "attention.h"
#include "elementwise.h"
#include "feed_forward.h"
#include "head_norm.h"
#include "isa_dispatch.h"
#include "linear.h"
#include "scratch.h"
#include "short_conv.h"

namespace {

using namespace lfm;

int failures = 0;

void Expect(bool holds, const std::string& statement) {
  if (holds) return;
  std::fprintf(stderr, "FAILED: %s\n", statement.c_str());
  ++failures;
}

class Threads final : public Parallel {
 public:
  explicit Threads(int count) : count_(count) {}

 private:
  void Run(size_t tasks, void (*body)(void* user, size_t index), void* user) override {
    std::atomic<size_t> next{0};
    const auto work = [&] {
      for (size_t task = next++; task < tasks; task = next++) body(user, task);
    };
    std::vector<std::thread> threads;
    for (int i = 1; i < count_; ++i) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
  }

  int count_;
};

// Memory of exactly `count` elements, filled by `next`.
template <class T, class Next>
std::unique_ptr<T[]> Filled(int64_t count, Next next) {
  std::unique_ptr<T[]> values(new T[static_cast<size_t>(count)]);
  for (int64_t i = 0; i < count; ++i) values[i] = static_cast<T>(next());
  return values;
}

struct Random {
  std::mt19937 engine{12345};
  float Normal() { return std::normal_distribution<float>()(engine); }
  int64_t Below(int64_t end) { return static_cast<int64_t>(engine() % static_cast<uint64_t>(end)); }
  std::unique_ptr<float[]> Floats(int64_t count, float scale = 1) {
    return Filled<float>(count, [&] { return Normal() * scale; });
  }
};

struct Matrix {
  WeightRows rows{};
  std::unique_ptr<uint8_t[]> data, zero_points;
  std::unique_ptr<uint16_t[]> half_scales;
  std::unique_ptr<float[]> float_scales;
};

Matrix RandomMatrix(Random& random, WeightType type, int64_t row_count, int64_t columns, int block_size,
                    bool half_scales, bool zero_points) {
  Matrix matrix;
  WeightRows& rows = matrix.rows;
  rows.type = type;
  rows.columns = columns;
  const auto half = [&] { return 0x2000 + random.Below(0x800); };  // about 0.01
  if (type == WeightType::kFloat32 || type == WeightType::kFloat16) {
    rows.row_bytes = columns * (type == WeightType::kFloat32 ? 4 : 2);
    matrix.data.reset(new uint8_t[static_cast<size_t>(row_count * rows.row_bytes)]);
    for (int64_t i = 0; i < row_count * columns; ++i) {
      const float value = random.Normal() * 0.05f;
      const auto bits = static_cast<uint16_t>(half());
      if (type == WeightType::kFloat32) std::memcpy(matrix.data.get() + 4 * i, &value, 4);
      if (type == WeightType::kFloat16) std::memcpy(matrix.data.get() + 2 * i, &bits, 2);
    }
  } else {
    const int bits = type == WeightType::kInt4 ? 4 : 8;
    rows.block_size = block_size;
    rows.blocks = (columns + block_size - 1) / block_size;
    rows.row_bytes = rows.blocks * block_size * bits / 8;
    rows.scales_are_float16 = half_scales;
    const auto byte = [&] { return random.Below(256); };
    matrix.data = Filled<uint8_t>(row_count * rows.row_bytes, byte);
    if (half_scales) {
      matrix.half_scales = Filled<uint16_t>(row_count * rows.blocks, half);
      rows.scales = matrix.half_scales.get();
    } else {
      matrix.float_scales = random.Floats(row_count * rows.blocks, 0.01f);
      rows.scales = matrix.float_scales.get();
    }
    if (zero_points) {
      rows.zero_point_row_bytes = (rows.blocks * bits + 7) / 8;
      matrix.zero_points = Filled<uint8_t>(row_count * rows.zero_point_row_bytes, byte);
      rows.zero_points = matrix.zero_points.get();
    }
  }
  rows.data = matrix.data.get();
  return matrix;
}

bool Same(const float* a, const float* b, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (a[i] != b[i] && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  }
  return true;
}

std::vector<float> Product(const KernelTable& kernels, const WeightRows& weights, ActivationType activation,
                           int64_t row_begin, int64_t row_end, const float* x, int64_t tokens) {
  Scratch scratch;
  void* packed = scratch.Get<std::byte>(Scratch::kPackedInput,
                                        static_cast<int64_t>(kernels.packed_bytes(weights, activation, tokens)));
  kernels.pack(weights, activation, x, weights.columns, tokens, packed);
  std::vector<float> y(static_cast<size_t>(tokens * (row_end - row_begin)));
  kernels.multiply(weights, activation, row_begin, row_end, packed, tokens, y.data(), row_end - row_begin);
  return y;
}

void TablesEqualScalar(Random& random) {
  for (const std::string& name : AvailableKernels()) {
    const KernelTable& table = *FindKernels(name.c_str());
    for (const WeightType type : {WeightType::kFloat32, WeightType::kFloat16, WeightType::kInt8, WeightType::kInt4}) {
      const bool integer = type == WeightType::kInt8 || type == WeightType::kInt4;
      for (int round = 0; round < (integer ? 60 : 12); ++round) {
        const int block_size = 32 << random.Below(3);
        const int64_t columns = 1 + random.Below(300), row_count = 1 + random.Below(40), tokens = 1 + random.Below(20);
        const Matrix matrix =
            RandomMatrix(random, type, row_count, columns, block_size, random.Below(2) == 0, random.Below(2) == 0);
        auto x = random.Floats(tokens * columns, 3);
        if (round % 4 == 1) x[random.Below(tokens * columns)] = std::numeric_limits<float>::quiet_NaN();
        if (round % 4 == 2) x[random.Below(tokens * columns)] = -std::numeric_limits<float>::infinity();
        if (round % 4 == 3) x[random.Below(tokens * columns)] = 1e-39f;
        const int64_t begin = random.Below(row_count);
        for (const ActivationType activation : {ActivationType::kInt8PerBlock, ActivationType::kFloat32}) {
          const auto expected = Product(*ScalarKernels(), matrix.rows, activation, begin, row_count, x.get(), tokens);
          const auto found = Product(table, matrix.rows, activation, begin, row_count, x.get(), tokens);
          Expect(Same(expected.data(), found.data(), static_cast<int64_t>(expected.size())),
                 name + " equals scalar: type " + std::to_string(static_cast<int>(type)) + ", columns " +
                     std::to_string(columns) + ", block " + std::to_string(block_size) + ", rows " +
                     std::to_string(row_count) + ", tokens " + std::to_string(tokens) + ", activation " +
                     std::to_string(static_cast<int>(activation)));
        }
      }
    }
  }
}

struct Experts {
  Matrix gate_up, down;
  std::unique_ptr<float[]> router_weight, bias;
  FeedForward network;
  Router router;
};

std::unique_ptr<Experts> RandomExperts(Random& random, int64_t count, int64_t top_k, int64_t hidden, int64_t width) {
  Matrix gate_up = RandomMatrix(random, WeightType::kInt4, count * 2 * width, hidden, 32, true, true);
  Matrix down = RandomMatrix(random, WeightType::kInt4, count * hidden, width, 32, true, false);
  const FeedForward network{SelectKernels(), gate_up.rows, down.rows, hidden, width, ActivationType::kInt8PerBlock};
  auto router_weight = random.Floats(count * hidden, 0.1f);
  auto bias = random.Floats(count, 0.1f);
  Router router{};
  router.weight.type = WeightType::kFloat32;
  router.weight.columns = hidden;
  router.weight.data = router_weight.get();
  router.weight.row_bytes = hidden * 4;
  router.bias = bias.get();
  router.rule = {count, top_k, true, 1.5f};
  return std::unique_ptr<Experts>(
      new Experts{std::move(gate_up), std::move(down), std::move(router_weight), std::move(bias), network, router});
}

void ResultsDoNotDependOnThreads(Random& random) {
  const int64_t hidden = 96, width = 64;
  const auto experts = RandomExperts(random, 8, 3, hidden, width);
  for (const int64_t tokens : {1, 2, 5, 40, 300}) {
    const auto x = random.Floats(tokens * hidden);
    std::vector<float> expected(static_cast<size_t>(tokens * hidden)), found(expected.size());
    Scratch scratch;
    Threads one(1), four(4);
    SparseFeedForward(experts->network, experts->router, x.get(), tokens, expected.data(), scratch, one);
    SparseFeedForward(experts->network, experts->router, x.get(), tokens, found.data(), scratch, four);
    Expect(Same(expected.data(), found.data(), tokens * hidden),
           "experts: 4 threads give what 1 gives, tokens " + std::to_string(tokens));
    DenseFeedForward(experts->network, x.get(), tokens, expected.data(), scratch, one);
    DenseFeedForward(experts->network, x.get(), tokens, found.data(), scratch, four);
    Expect(Same(expected.data(), found.data(), tokens * hidden),
           "dense: 4 threads give what 1 gives, tokens " + std::to_string(tokens));
  }
}

void ConcurrentCallsDoNotMeet(Random& random) {
  const int64_t hidden = 64, width = 32, tokens = 20;
  const auto experts = RandomExperts(random, 4, 2, hidden, width);
  const auto x = random.Floats(tokens * hidden);
  const auto run = [&](std::vector<float>* y) {
    for (int repeat = 0; repeat < 10; ++repeat) {
      const ScratchLease scratch;
      Threads two(2);
      SparseFeedForward(experts->network, experts->router, x.get(), tokens, y->data(), *scratch, two);
    }
  };
  std::vector<std::vector<float>> results(6, std::vector<float>(static_cast<size_t>(tokens * hidden)));
  std::vector<std::thread> callers;
  for (auto& y : results) callers.emplace_back(run, &y);
  for (std::thread& caller : callers) caller.join();
  for (const auto& y : results) {
    Expect(Same(results[0].data(), y.data(), tokens * hidden), "concurrent calls give the same result");
  }
}

void RouterOrdersTiesAndNaN() {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const float bias[4] = {};
  float scores[4], weights[3];
  int32_t chosen[3];
  const RoutingRule rule{4, 3, true, 1};
  const float equal[4] = {};
  Route(rule, equal, bias, scores, chosen, weights);
  Expect(chosen[0] == 0 && chosen[1] == 1 && chosen[2] == 2, "equal scores: lower indices first");
  const float mixed[4] = {nan, infinity, -infinity, nan};
  Route(rule, mixed, bias, scores, chosen, weights);
  Expect(chosen[0] == 0 && chosen[1] == 3 && chosen[2] == 1, "NaN comes before any number");
  Expect(std::isnan(weights[2]), "a NaN among the chosen shows in all weights");
  const float descending[4] = {1, 4, 3, 2};
  Route(rule, descending, bias, scores, chosen, weights);
  Expect(chosen[0] == 1 && chosen[1] == 2 && chosen[2] == 3, "greatest first");
}

void ElementwiseLoopsAgree(Random& random) {
  const int64_t count = 1000;
  auto gate_up = random.Floats(2 * count, 40);
  gate_up[0] = std::numeric_limits<float>::quiet_NaN();
  gate_up[2] = std::numeric_limits<float>::infinity();
  std::vector<float> expected(count), found(count);
  FindElementwise("baseline")->silu_multiply(gate_up.get(), count, expected.data());
  for (const char* name : {"avx2", "avx512"}) {
    const Elementwise* loops = FindElementwise(name);
    if (loops == nullptr) continue;
    loops->silu_multiply(gate_up.get(), count, found.data());
    Expect(Same(expected.data(), found.data(), count), std::string("silu of ") + name + " equals the baseline");
  }
  Expect(std::isnan(expected[0]), "NaN stays NaN");
}

void ShortConvOfAnyShapeStaysInBounds(Random& random) {
  for (const int64_t taps : {1, 2, 3, 20}) {
    for (const int64_t hidden : {1, 7, 300}) {
      for (const int64_t sequence : {0, 1, 2, 9, 200}) {
        const int64_t batch = 2;
        const auto bcx = random.Floats(batch * sequence * 3 * hidden), weight = random.Floats(taps * hidden),
                   past = random.Floats(batch * hidden * taps);
        const auto mask = Filled<float>(batch * sequence, [&] { return random.Below(4) > 0; });
        std::vector<float> y[2], present[2];
        for (int run = 0; run < 2; ++run) {
          y[run].resize(static_cast<size_t>(batch * sequence * hidden));
          present[run].resize(static_cast<size_t>(batch * hidden * taps));
          Threads threads(1 + 2 * run);
          RunShortConv({batch, sequence, hidden, taps, bcx.get(), weight.get(), mask.get(), past.get(), nullptr,
                        y[run].data(), present[run].data()},
                       threads);
        }
        Expect(y[0] == y[1] && present[0] == present[1], "convolution: 3 threads give what 1 gives");
        if (sequence == 0) {
          Expect(Same(present[0].data(), past.get(), batch * hidden * taps), "no tokens: the state stays");
        }
      }
    }
  }
}

void HeadNormStaysInBounds(Random& random) {
  for (const int64_t size : {1, 15, 16, 64, 65}) {
    const auto qkv = random.Floats(5 * 7 * size), weight = random.Floats(size);
    std::vector<float> q(static_cast<size_t>(5 * 3 * size)), k(static_cast<size_t>(5 * 2 * size)), v(k.size());
    Threads threads(2);
    RunHeadNorm({5, 3, 2, size, 1e-5f, qkv.get(), weight.get(), weight.get(), q.data(), k.data(), v.data()}, threads);
    Expect(Same(v.data(), qkv.get() + 5 * size, 2 * size), "values are copied");
  }
}

// Caches of exactly the columns that there are, whatever the blocks and chunks that they are read in.
void AttentionStaysInBounds(Random& random) {
  Threads threads(2);
  for (const int64_t head_dim : {16, 64, 256}) {
    for (const int64_t group : {1, 3}) {
      for (const int64_t past : {0, 5, 63, 513}) {
        for (const int64_t sequence : {1, 17, 70}) {
          const int64_t kv_heads = 2, heads = group * kv_heads, columns = past + sequence, d = head_dim;
          const auto query = random.Floats(sequence * heads * d), key = random.Floats(sequence * kv_heads * d),
                     value = random.Floats(sequence * kv_heads * d), past_key = random.Floats(kv_heads * past * d),
                     past_value = random.Floats(kv_heads * past * d), cos = random.Floats(columns * d / 2),
                     sin = random.Floats(columns * d / 2);
          std::vector<float> expected;
          for (const std::string& name : AvailableKernels()) {
            std::unique_ptr<float[]> output(new float[static_cast<size_t>(sequence * heads * d)]),
                keys(new float[static_cast<size_t>(kv_heads * columns * d)]),
                values(new float[static_cast<size_t>(kv_heads * columns * d)]);
            const Attention attention = {1,         sequence,     heads,          kv_heads,         d,
                                         0.1f,      &past,        past,           columns,          query.get(),
                                         key.get(), value.get(),  past_key.get(), past_value.get(), cos.get(),
                                         sin.get(), output.get(), keys.get(),     values.get()};
            RunAttention(attention, AttentionKernelsBeside(name.c_str()), threads);
            if (expected.empty()) expected.assign(output.get(), output.get() + sequence * heads * d);
            Expect(Same(output.get(), expected.data(), sequence * heads * d), "attention is the same with " + name);
          }
        }
      }
    }
  }
}

}  // namespace

int main() {
  Random random;
  TablesEqualScalar(random);
  ResultsDoNotDependOnThreads(random);
  ConcurrentCallsDoNotMeet(random);
  RouterOrdersTiesAndNaN();
  ElementwiseLoopsAgree(random);
  ShortConvOfAnyShapeStaysInBounds(random);
  HeadNormStaysInBounds(random);
  AttentionStaysInBounds(random);
  if (failures == 0) std::printf("all statements hold\n");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
