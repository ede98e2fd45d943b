// Views of ONNX Runtime's tensors and attributes that turn every surprise into an error naming op and input.
#pragma once

#include <array>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "ort_abi.h"
#include "parallel.h"

namespace lfm {

// A model or a call that the op cannot run; becomes an OrtStatus at the ABI.
class OpError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Shape {
  static constexpr size_t kMaxRank = 8;

  std::array<int64_t, kMaxRank> dims{};
  size_t rank = 0;

  Shape() = default;
  Shape(std::initializer_list<int64_t> list);

  int64_t operator[](size_t axis) const { return dims[axis]; }
  int64_t Last() const { return dims[rank - 1]; }
  // Product of the dimensions from `axis` on, and of those before it.
  int64_t CountFrom(size_t axis) const;
  int64_t CountBefore(size_t axis) const;
  Shape WithLast(int64_t size) const;
  bool operator==(const Shape& other) const;
  std::string Text() const;  // such as [2, 3, 64]
};

struct Tensor {
  ElementType type = ElementType::kUndefined;
  Shape shape;
  void* data = nullptr;

  const float* Floats() const { return static_cast<const float*>(data); }
};

struct OpInput {
  const char* name;
  ElementType type;  // kUndefined: the op checks it
  bool optional;
};

struct OpSignature {
  const char* name;  // without the domain
  const OpInput* inputs;
  size_t input_count;
  size_t output_count;  // all float32
};

// A size or an attribute beyond this is a damaged model; products of two stay within 64 bits.
inline constexpr int64_t kMaxSize = int64_t{1} << 31;

// Where an op's inputs come from: the model's constants at creation, or a call.
class OpInputs {
 public:
  OpInputs(const OrtFunctions& ort, const OpSignature& op) : ort_(ort), op_(op) {}

  // False where the input is absent.
  virtual bool Find(size_t index, Tensor* out) const = 0;

  // The input; OpError where it is absent.
  Tensor Require(size_t index) const;
  // The input where present, checked to have `shape`.
  const float* FloatsOrNull(size_t index, const Shape& shape) const;
  const float* Floats(size_t index, const Shape& shape) const;

  void CheckShape(size_t index, const Tensor& tensor, const Shape& expected) const;
  void CheckType(size_t index, const Tensor& tensor, ElementType expected) const;

  // OpError "ai.liquid::QLinear: input scales: ...".
  [[noreturn]] void FailInput(size_t index, const std::string& what) const;
  [[noreturn]] void Fail(const std::string& what) const;

 protected:
  ~OpInputs() = default;
  void Check(OrtStatus* status) const;
  Tensor Describe(const OrtValue* value) const;

  const OrtFunctions& ort_;
  const OpSignature& op_;
};

// A node at its creation: attributes, and the inputs that are constants of the model.
class NodeInfo final : public OpInputs {
 public:
  NodeInfo(const OrtFunctions& ort, const OpSignature& op, const OrtKernelInfo* info);

  bool Find(size_t index, Tensor* out) const override;
  // Whether every input in [first, end) is a constant or absent.
  bool AllConstant(size_t first, size_t end = SIZE_MAX) const;

  // The attribute, `fallback` where the node has none; OpError outside [least, most].
  int64_t Int(const char* name, int64_t fallback, int64_t least, int64_t most) const;
  // OpError where the node has none.
  int64_t RequiredInt(const char* name, int64_t least, int64_t most) const;
  float RequiredFloat(const char* name) const;
  [[noreturn]] void FailAttribute(const char* name, const std::string& what) const;

 private:
  bool Has(size_t index) const;
  bool Get(const char* name, int64_t* out) const;

  const OrtKernelInfo* info_;
  size_t input_count_ = 0;
};

// One call of a node.
class NodeCall final : public OpInputs, public Parallel {
 public:
  NodeCall(const OrtFunctions& ort, const OpSignature& op, OrtKernelContext* context);

  bool Find(size_t index, Tensor* out) const override;
  float* Output(size_t index, const Shape& shape) const;

 private:
  void Run(size_t tasks, void (*body)(void* user, size_t index), void* user) override;

  OrtKernelContext* context_;
  size_t input_count_ = 0;
};

}  // namespace lfm
