// Turns a C++ class into ONNX Runtime's table of C functions; no exception crosses the ABI.
#pragma once

#include <memory>
#include <new>

#include "op_inputs.h"

namespace lfm {

inline OrtStatus* StatusOf(const OrtFunctions& ort, const char* op, const std::exception& error) noexcept {
  const bool is_op_error = dynamic_cast<const OpError*>(&error) != nullptr;
  const bool no_memory = dynamic_cast<const std::bad_alloc*>(&error) != nullptr;
  if (is_op_error) return ort.CreateStatus(kOrtInvalidArgument, error.what());
  try {
    const std::string what = no_memory ? "out of memory" : error.what();
    return ort.CreateStatus(kOrtFail, (std::string("ai.liquid::") + op + ": " + what).c_str());
  } catch (...) {
    return ort.CreateStatus(kOrtFail, "ai.liquid: out of memory");
  }
}

// Op has `static constexpr OpSignature kSignature`, a constructor from NodeInfo that throws OpError for what it cannot
// run, and `void Compute(NodeCall&) const`, which may run on several threads at once.
template <class Op>
class CustomOp {
 public:
  static const OrtCustomOp* Get() {
    static const OrtCustomOp op = Make();
    return &op;
  }

 private:
  struct Node {
    OrtFunctions ort;
    Op op;

    Node(const OrtApi* api, const OrtKernelInfo* info) : ort(api), op(NodeInfo(ort, Op::kSignature, info)) {}
  };

  static OrtCustomOp Make() {
    OrtCustomOp op{};
    op.version = kOrtApiVersion;
    op.GetName = [](const OrtCustomOp*) { return Op::kSignature.name; };
    op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    op.GetInputTypeCount = [](const OrtCustomOp*) { return Op::kSignature.input_count; };
    op.GetInputType = [](const OrtCustomOp*, size_t index) {
      return static_cast<int>(Op::kSignature.inputs[index].type);
    };
    op.GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
      return static_cast<int>(Op::kSignature.inputs[index].optional ? kOrtOptional : kOrtRequired);
    };
    op.GetOutputTypeCount = [](const OrtCustomOp*) { return Op::kSignature.output_count; };
    op.GetOutputType = [](const OrtCustomOp*, size_t) { return static_cast<int>(ElementType::kFloat32); };
    op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return static_cast<int>(kOrtRequired); };
    op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
    op.GetVariadicInputMinArity = op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
    op.GetVariadicInputHomogeneity = op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
    op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
    op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
    op.CreateKernelV2 = Create;
    op.KernelComputeV2 = Compute;
    op.KernelDestroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
    return op;
  }

  static OrtStatus* Create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    try {
      *kernel = new Node(api, info);
      return nullptr;
    } catch (const std::exception& error) {
      return StatusOf(OrtFunctions(api), Op::kSignature.name, error);
    } catch (...) {
      return OrtFunctions(api).CreateStatus(kOrtFail, "ai.liquid: unknown error");
    }
  }

  static OrtStatus* Compute(void* kernel, OrtKernelContext* context) {
    const Node& node = *static_cast<const Node*>(kernel);
    try {
      NodeCall call(node.ort, Op::kSignature, context);
      node.op.Compute(call);
      return nullptr;
    } catch (const std::exception& error) {
      return StatusOf(node.ort, Op::kSignature.name, error);
    } catch (...) {
      return node.ort.CreateStatus(kOrtFail, "ai.liquid: unknown error");
    }
  }
};

}  // namespace lfm
