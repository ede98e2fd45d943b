// Reads tensors and attributes through the C ABI.
#include "op_inputs.h"

#include <algorithm>
#include <functional>
#include <numeric>

namespace lfm {
namespace {

const char* TypeName(ElementType type) {
  switch (type) {
    case ElementType::kFloat32: return "float32";
    case ElementType::kUint8: return "uint8";
    case ElementType::kInt32: return "int32";
    case ElementType::kInt64: return "int64";
    case ElementType::kFloat16: return "float16";
    default: return nullptr;
  }
}

std::string TypeText(ElementType type) {
  const char* name = TypeName(type);
  return name != nullptr ? name : "element type " + std::to_string(static_cast<int>(type));
}

// 0 first: beside it the other dimensions of an empty tensor may be of any size.
int64_t Product(const int64_t* begin, const int64_t* end) {
  if (std::find(begin, end, 0) != end) return 0;
  return std::accumulate(begin, end, int64_t{1}, std::multiplies<>());
}

}  // namespace

Shape::Shape(std::initializer_list<int64_t> list) : rank(list.size()) {
  std::copy(list.begin(), list.end(), dims.begin());
}

int64_t Shape::CountFrom(size_t axis) const { return Product(dims.data() + axis, dims.data() + rank); }

int64_t Shape::CountBefore(size_t axis) const { return Product(dims.data(), dims.data() + axis); }

Shape Shape::WithLast(int64_t size) const {
  Shape shape = *this;
  shape.dims[rank - 1] = size;
  return shape;
}

bool Shape::operator==(const Shape& other) const {
  return rank == other.rank && std::equal(dims.begin(), dims.begin() + rank, other.dims.begin());
}

std::string Shape::Text() const {
  std::string text = "[";
  for (size_t i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(dims[i]);
  return text + "]";
}

Tensor OpInputs::Require(size_t index) const {
  Tensor tensor;
  if (!Find(index, &tensor)) FailInput(index, "missing");
  return tensor;
}

const float* OpInputs::FloatsOrNull(size_t index, const Shape& shape) const {
  Tensor tensor;
  if (!Find(index, &tensor)) return nullptr;
  CheckType(index, tensor, ElementType::kFloat32);
  CheckShape(index, tensor, shape);
  return tensor.Floats();
}

const float* OpInputs::Floats(size_t index, const Shape& shape) const {
  Require(index);
  return FloatsOrNull(index, shape);
}

void OpInputs::CheckShape(size_t index, const Tensor& tensor, const Shape& expected) const {
  if (!(tensor.shape == expected)) {
    FailInput(index, "expected shape " + expected.Text() + ", found " + tensor.shape.Text());
  }
}

void OpInputs::CheckType(size_t index, const Tensor& tensor, ElementType expected) const {
  if (tensor.type != expected) FailInput(index, "expected " + TypeText(expected) + ", found " + TypeText(tensor.type));
}

void OpInputs::FailInput(size_t index, const std::string& what) const {
  Fail(std::string("input ") + (index < op_.input_count ? op_.inputs[index].name : "?") + ": " + what);
}

void OpInputs::Fail(const std::string& what) const {
  throw OpError(std::string("ai.liquid::") + op_.name + ": " + what);
}

void OpInputs::Check(OrtStatus* status) const {
  if (status == nullptr) return;
  const std::string message = ort_.GetErrorMessage(status);
  ort_.ReleaseStatus(status);
  Fail(message);
}

Tensor OpInputs::Describe(const OrtValue* value) const {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  Check(ort_.GetTensorTypeAndShape(value, &info));
  struct Release {
    const OrtFunctions& ort;
    OrtTensorTypeAndShapeInfo* info;
    ~Release() { ort.ReleaseTensorTypeAndShapeInfo(info); }
  } release{ort_, info};
  Tensor tensor;
  int type = 0;
  Check(ort_.GetTensorElementType(info, &type));
  tensor.type = static_cast<ElementType>(type);
  Check(ort_.GetDimensionsCount(info, &tensor.shape.rank));
  if (tensor.shape.rank > Shape::kMaxRank) Fail("an input has more than " + std::to_string(Shape::kMaxRank) + " axes");
  Check(ort_.GetDimensions(info, tensor.shape.dims.data(), tensor.shape.rank));
  Check(ort_.GetTensorMutableData(const_cast<OrtValue*>(value), &tensor.data));
  return tensor;
}

NodeInfo::NodeInfo(const OrtFunctions& ort, const OpSignature& op, const OrtKernelInfo* info)
    : OpInputs(ort, op), info_(info) {
  Check(ort_.KernelInfo_GetInputCount(info_, &input_count_));
  size_t outputs = 0;
  Check(ort_.KernelInfo_GetOutputCount(info_, &outputs));
  if (outputs != op.output_count) {
    Fail("expected " + std::to_string(op.output_count) + " outputs, found " + std::to_string(outputs));
  }
}

bool NodeInfo::Has(size_t index) const {
  if (index >= input_count_) return false;
  // An absent optional input before a present one has the empty name, of one byte with its end.
  size_t size = 0;
  Check(ort_.KernelInfo_GetInputName(info_, index, nullptr, &size));
  return size > 1;
}

bool NodeInfo::Find(size_t index, Tensor* out) const {
  if (!Has(index)) return false;
  int is_constant = 0;
  const OrtValue* value = nullptr;
  Check(ort_.KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
  if (!is_constant || value == nullptr) return false;
  *out = Describe(value);
  return true;
}

bool NodeInfo::AllConstant(size_t first, size_t end) const {
  for (size_t index = first; index < std::min(end, input_count_); ++index) {
    Tensor unused;
    if (Has(index) && !Find(index, &unused)) return false;
  }
  return true;
}

bool NodeInfo::Get(const char* name, int64_t* out) const {
  if (OrtStatus* status = ort_.KernelInfoGetAttribute_int64(info_, name, out)) {
    ort_.ReleaseStatus(status);
    return false;
  }
  return true;
}

int64_t NodeInfo::Int(const char* name, int64_t fallback, int64_t least, int64_t most) const {
  int64_t value = 0;
  if (!Get(name, &value)) return fallback;
  if (value < least || value > most) {
    FailAttribute(
        name, "expected " + std::to_string(least) + " to " + std::to_string(most) + ", found " + std::to_string(value));
  }
  return value;
}

int64_t NodeInfo::RequiredInt(const char* name, int64_t least, int64_t most) const {
  int64_t value = 0;
  if (!Get(name, &value)) FailAttribute(name, "missing, or not an integer");
  return Int(name, 0, least, most);
}

float NodeInfo::RequiredFloat(const char* name) const {
  float value = 0;
  if (OrtStatus* status = ort_.KernelInfoGetAttribute_float(info_, name, &value)) {
    ort_.ReleaseStatus(status);
    FailAttribute(name, "missing, or not a float");
  }
  return value;
}

void NodeInfo::FailAttribute(const char* name, const std::string& what) const {
  Fail(std::string("attribute ") + name + ": " + what);
}

NodeCall::NodeCall(const OrtFunctions& ort, const OpSignature& op, OrtKernelContext* context)
    : OpInputs(ort, op), context_(context) {
  Check(ort_.KernelContext_GetInputCount(context_, &input_count_));
}

bool NodeCall::Find(size_t index, Tensor* out) const {
  if (index >= input_count_) return false;
  const OrtValue* value = nullptr;
  Check(ort_.KernelContext_GetInput(context_, index, &value));
  if (value == nullptr) return false;
  *out = Describe(value);
  return true;
}

float* NodeCall::Output(size_t index, const Shape& shape) const {
  OrtValue* value = nullptr;
  Check(ort_.KernelContext_GetOutput(context_, index, shape.dims.data(), shape.rank, &value));
  if (value == nullptr) Fail("output " + std::to_string(index) + ": missing");
  void* data = nullptr;
  Check(ort_.GetTensorMutableData(value, &data));
  return static_cast<float*>(data);
}

void NodeCall::Run(size_t tasks, void (*body)(void* user, size_t index), void* user) {
  Check(ort_.KernelContext_ParallelFor(context_, body, tasks, 0, user));
}

}  // namespace lfm
