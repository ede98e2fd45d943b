// The part of ONNX Runtime's C ABI that this library uses, declared here so that building needs no header of it.
//
// The ABI only ever grows at its end: what is declared here holds for every ONNX Runtime from 1.17 on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

extern "C" {

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtApi;  // an array of function pointers

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // null where the runtime is older than `version`
  const char* (*GetVersionString)();
};

struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, void* context);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  // Later versions read on only where `version` says 18 or more.
};

}  // extern "C"

namespace lfm {

// The version that this library is written to: the first with KernelContext_ParallelFor.
inline constexpr uint32_t kOrtApiVersion = 17;

enum OrtErrorCode { kOrtFail = 1, kOrtInvalidArgument = 2 };

enum class ElementType : int {
  kUndefined = 0,  // as an op's declared input type: any
  kFloat32 = 1,
  kUint8 = 2,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
};

enum OrtCharacteristic { kOrtRequired = 0, kOrtOptional = 1 };

// Typed pointers to the functions of OrtApi that are used, read from their fixed places.
struct OrtFunctions {
  OrtStatus* (*CreateStatus)(int code, const char* message);
  const char* (*GetErrorMessage)(const OrtStatus*);
  void (*ReleaseStatus)(OrtStatus*);
  OrtStatus* (*CreateCustomOpDomain)(const char* domain, OrtCustomOpDomain** out);
  OrtStatus* (*CustomOpDomain_Add)(OrtCustomOpDomain*, const OrtCustomOp*);
  OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions*, OrtCustomOpDomain*);
  OrtStatus* (*GetTensorMutableData)(OrtValue*, void** out);
  OrtStatus* (*GetTensorElementType)(const OrtTensorTypeAndShapeInfo*, int* out);
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo*, size_t* out);
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo*, int64_t* dims, size_t count);
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue*, OrtTensorTypeAndShapeInfo** out);
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo*);
  OrtStatus* (*KernelInfoGetAttribute_float)(const OrtKernelInfo*, const char* name, float* out);
  OrtStatus* (*KernelInfoGetAttribute_int64)(const OrtKernelInfo*, const char* name, int64_t* out);
  OrtStatus* (*KernelInfo_GetInputCount)(const OrtKernelInfo*, size_t* out);
  OrtStatus* (*KernelInfo_GetOutputCount)(const OrtKernelInfo*, size_t* out);
  OrtStatus* (*KernelInfo_GetInputName)(const OrtKernelInfo*, size_t index, char* out, size_t* size);
  OrtStatus* (*KernelInfoGetConstantInput_tensor)(const OrtKernelInfo*, size_t index, int* is_constant,
                                                  const OrtValue** out);
  OrtStatus* (*KernelContext_GetInputCount)(const OrtKernelContext*, size_t* out);
  OrtStatus* (*KernelContext_GetInput)(const OrtKernelContext*, size_t index, const OrtValue** out);
  OrtStatus* (*KernelContext_GetOutput)(OrtKernelContext*, size_t index, const int64_t* dims, size_t count,
                                        OrtValue** out);
  OrtStatus* (*KernelContext_ParallelFor)(const OrtKernelContext*, void (*body)(void* user, size_t index), size_t total,
                                          size_t batches, void* user);

  explicit OrtFunctions(const OrtApi* api) {
    Read(api, 0, CreateStatus);
    Read(api, 2, GetErrorMessage);
    Read(api, 26, CreateCustomOpDomain);
    Read(api, 27, CustomOpDomain_Add);
    Read(api, 28, AddCustomOpDomain);
    Read(api, 51, GetTensorMutableData);
    Read(api, 60, GetTensorElementType);
    Read(api, 61, GetDimensionsCount);
    Read(api, 62, GetDimensions);
    Read(api, 65, GetTensorTypeAndShape);
    Read(api, 85, KernelInfoGetAttribute_float);
    Read(api, 86, KernelInfoGetAttribute_int64);
    Read(api, 88, KernelContext_GetInputCount);
    Read(api, 90, KernelContext_GetInput);
    Read(api, 91, KernelContext_GetOutput);
    Read(api, 93, ReleaseStatus);
    Read(api, 99, ReleaseTensorTypeAndShapeInfo);
    Read(api, 230, KernelInfo_GetInputCount);
    Read(api, 231, KernelInfo_GetOutputCount);
    Read(api, 232, KernelInfo_GetInputName);
    Read(api, 249, KernelInfoGetConstantInput_tensor);
    Read(api, 274, KernelContext_ParallelFor);
  }

 private:
  template <class Function>
  static void Read(const OrtApi* api, size_t index, Function& out) {
    static_assert(sizeof(Function) == sizeof(void*));
    std::memcpy(&out, reinterpret_cast<const char*>(api) + index * sizeof(void*), sizeof(out));
  }
};

}  // namespace lfm
