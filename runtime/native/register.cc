// The library's exported functions: registration with ONNX Runtime, and what `lfm-onnx doctor` asks.
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "custom_op.h"
#include "isa_dispatch.h"
#include "ops.h"

#if defined(_WIN32)
#define LFM_EXPORT extern "C" __declspec(dllexport)
#else
#define LFM_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace lfm {
namespace {

// The domain of a runtime; it must outlive every session, so that it is kept for good and shared by all sessions.
OrtStatus* FindDomain(const OrtApiBase* base, const OrtFunctions& ort, OrtCustomOpDomain** domain) {
  static std::mutex mutex;
  static auto& domains = *new std::vector<std::pair<const OrtApiBase*, OrtCustomOpDomain*>>;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& known : domains) {
    if (known.first == base) {
      *domain = known.second;
      return nullptr;
    }
  }
  domains.reserve(domains.size() + 1);
  if (OrtStatus* status = ort.CreateCustomOpDomain("ai.liquid", domain)) return status;
  for (const OrtCustomOp* op : {GatedShortConvOp(), SparseMoEOp(), QLinearOp(), SwiGLUOp(), SplitQKVNormOp(),
                                GatherDequantizeOp(), GroupQueryAttentionOp()}) {
    if (OrtStatus* status = ort.CustomOpDomain_Add(*domain, op)) return status;
  }
  domains.emplace_back(base, *domain);
  return nullptr;
}

OrtStatus* TooOld(const OrtApiBase* base) {
  // CreateStatus is as old as the ABI: any version has it.
  const OrtApi* api = base->GetApi(1);
  if (api == nullptr) return nullptr;
  std::string message = "lfm_ops: expected ONNX Runtime 1.17 or newer, found ";
  message += base->GetVersionString();
  OrtStatus* (*create)(int, const char*);
  std::memcpy(&create, reinterpret_cast<const void*>(api), sizeof(create));
  return create(kOrtFail, message.c_str());
}

}  // namespace
}  // namespace lfm

LFM_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(lfm::kOrtApiVersion);
  try {
    if (api == nullptr) return lfm::TooOld(base);
    const lfm::OrtFunctions ort(api);
    try {
      lfm::SelectKernels();
      OrtCustomOpDomain* domain = nullptr;
      if (OrtStatus* status = lfm::FindDomain(base, ort, &domain)) return status;
      return ort.AddCustomOpDomain(options, domain);
    } catch (const std::exception& error) {
      return ort.CreateStatus(lfm::kOrtFail, (std::string("lfm_ops: ") + error.what()).c_str());
    }
  } catch (...) {
    return api == nullptr ? nullptr : lfm::OrtFunctions(api).CreateStatus(lfm::kOrtFail, "lfm_ops: out of memory");
  }
}

// Name of the kernels that sessions created now would use; null where LFM_OPS_ISA asks for ones that are not there.
LFM_EXPORT const char* lfm_ops_isa() {
  try {
    return lfm::SelectKernels().name;
  } catch (...) {
    return nullptr;
  }
}

// Names of the kernels that can run here, comma-separated, the best first.
LFM_EXPORT const char* lfm_ops_available_isas() {
  try {
    static const std::string names = [] {
      std::string joined;
      for (const std::string& name : lfm::AvailableKernels()) joined += (joined.empty() ? "" : ",") + name;
      return joined;
    }();
    return names.c_str();
  } catch (...) {
    return "";
  }
}

// Why kernels that this CPU has instructions for are not among them; empty where all are.
LFM_EXPORT const char* lfm_ops_refused_isas() {
  try {
    return lfm::RefusedKernels();
  } catch (...) {
    return "";
  }
}

#if !defined(LFM_OPS_VERSION)
#define LFM_OPS_VERSION "unknown"
#endif

// Version of the package that the library was built from.
LFM_EXPORT const char* lfm_ops_version() { return LFM_OPS_VERSION; }
