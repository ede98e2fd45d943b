// Models of the ai.liquid ops run on ONNX Runtime with the native library, and give the expected outputs.
//
// usage: model_test ONNXRUNTIME_LIBRARY LFM_OPS_LIBRARY CASES_FILE      (write_model_cases.py describes the file)
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <dlfcn.h>
#endif

#include "ort_abi.h"

struct OrtEnv;
struct OrtSession;
struct OrtRunOptions;
struct OrtMemoryInfo;

namespace {

// The functions of OrtApi that an application needs, at their fixed places.
struct Ort {
  const char* (*GetErrorMessage)(const OrtStatus*);
  OrtStatus* (*CreateEnv)(int level, const char* name, OrtEnv** out);
  OrtStatus* (*CreateSessionFromArray)(const OrtEnv*, const void* model, size_t bytes, const OrtSessionOptions*,
                                       OrtSession** out);
  OrtStatus* (*Run)(OrtSession*, const OrtRunOptions*, const char* const* input_names, const OrtValue* const* inputs,
                    size_t input_count, const char* const* output_names, size_t output_count, OrtValue** outputs);
  OrtStatus* (*CreateSessionOptions)(OrtSessionOptions** out);
  OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions*, int threads);
  OrtStatus* (*RegisterCustomOpsLibrary)(OrtSessionOptions*, const char* path, void** handle);
  OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo*, void* data, size_t bytes, const int64_t* dims,
                                               size_t rank, int type, OrtValue** out);
  OrtStatus* (*GetTensorMutableData)(OrtValue*, void** out);
  OrtStatus* (*GetTensorShapeElementCount)(const OrtTensorTypeAndShapeInfo*, size_t* out);
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue*, OrtTensorTypeAndShapeInfo** out);
  OrtStatus* (*CreateCpuMemoryInfo)(int allocator, int memory, OrtMemoryInfo** out);
  void (*ReleaseStatus)(OrtStatus*);
  void (*ReleaseSession)(OrtSession*);
  void (*ReleaseValue)(OrtValue*);
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo*);

  explicit Ort(const OrtApi* api) {
    Read(api, 2, GetErrorMessage);
    Read(api, 3, CreateEnv);
    Read(api, 8, CreateSessionFromArray);
    Read(api, 9, Run);
    Read(api, 10, CreateSessionOptions);
    Read(api, 24, SetIntraOpNumThreads);
    Read(api, 29, RegisterCustomOpsLibrary);
    Read(api, 49, CreateTensorWithDataAsOrtValue);
    Read(api, 51, GetTensorMutableData);
    Read(api, 64, GetTensorShapeElementCount);
    Read(api, 65, GetTensorTypeAndShape);
    Read(api, 69, CreateCpuMemoryInfo);
    Read(api, 93, ReleaseStatus);
    Read(api, 95, ReleaseSession);
    Read(api, 96, ReleaseValue);
    Read(api, 99, ReleaseTensorTypeAndShapeInfo);
  }

  // Throws what the status says.
  void Check(OrtStatus* status) const {
    if (status == nullptr) return;
    const std::string message = GetErrorMessage(status);
    ReleaseStatus(status);
    throw std::runtime_error(message);
  }

 private:
  template <class Function>
  static void Read(const OrtApi* api, size_t index, Function& out) {
    std::memcpy(&out, reinterpret_cast<const char*>(api) + index * sizeof(void*), sizeof(out));
  }
};

// Before ONNX Runtime loads, which otherwise tells its maker of this machine; what the user has set stays.
void DisableTelemetry() {
  constexpr const char* kName = "ORT_DISABLE_TELEMETRY";
  if (std::getenv(kName) != nullptr) return;
#if defined(_WIN32)
  _putenv_s(kName, "1");
#else
  setenv(kName, "1", 0);
#endif
}

const OrtApiBase* LoadRuntime(const char* path) {
  DisableTelemetry();
  using GetApiBase = const OrtApiBase* (*)();
  GetApiBase get = nullptr;
#if defined(_WIN32)
  const HMODULE library = LoadLibraryA(path);
  if (library == nullptr) throw std::runtime_error("error " + std::to_string(GetLastError()) + " on loading " + path);
  const FARPROC found = GetProcAddress(library, "OrtGetApiBase");
#else
  void* library = dlopen(path, RTLD_NOW);
  if (library == nullptr) throw std::runtime_error(dlerror());
  void* found = dlsym(library, "OrtGetApiBase");
#endif
  static_assert(sizeof(found) == sizeof(get));
  std::memcpy(&get, &found, sizeof(get));
  if (get == nullptr) throw std::runtime_error(std::string(path) + " has no OrtGetApiBase");
  return get();
}

class Reader {
 public:
  explicit Reader(const char* path) {
    std::ifstream file(path, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  }
  template <class Value>
  Value Next() {
    Value value;
    std::memcpy(&value, Take(sizeof(value)), sizeof(value));
    return value;
  }
  std::string Text() {
    const auto size = static_cast<size_t>(Next<uint64_t>());
    return std::string(Take(size), size);
  }

 private:
  const char* Take(size_t size) {
    if (size > bytes_.size() - at_) throw std::runtime_error("the cases file ends too soon");
    at_ += size;
    return bytes_.data() + at_ - size;
  }
  std::vector<char> bytes_;
  size_t at_ = 0;
};

struct NamedTensor {
  std::string name;
  int type;
  std::vector<int64_t> dims;
  std::string bytes;
};

std::vector<NamedTensor> ReadTensors(Reader& reader) {
  std::vector<NamedTensor> tensors(reader.Next<uint32_t>());
  for (NamedTensor& tensor : tensors) {
    tensor.name = reader.Text();
    tensor.type = reader.Next<int32_t>();
    tensor.dims.resize(reader.Next<uint32_t>());
    for (int64_t& dim : tensor.dims) dim = reader.Next<int64_t>();
    tensor.bytes = reader.Text();
  }
  return tensors;
}

struct Case {
  std::string name, model, error;
  float tolerance;
  bool is_exact;
  std::vector<NamedTensor> inputs, expected, exact;

  explicit Case(Reader& reader) : name(reader.Text()), model(reader.Text()), error(reader.Text()) {
    tolerance = reader.Next<float>();
    is_exact = reader.Next<uint32_t>() != 0;
    inputs = ReadTensors(reader);
    expected = ReadTensors(reader);
    exact = ReadTensors(reader);
  }
};

class Runtime {
 public:
  Runtime(const char* runtime_path, const char* ops_path) : ort_(LoadRuntime(runtime_path)->GetApi(17)) {
    constexpr int kFatal = 4, kArenaAllocator = 1, kDefaultMemory = 0, kThreads = 2;
    ort_.Check(ort_.CreateEnv(kFatal, "model_test", &env_));
    ort_.Check(ort_.CreateSessionOptions(&options_));
    ort_.Check(ort_.SetIntraOpNumThreads(options_, kThreads));
    void* handle = nullptr;
    ort_.Check(ort_.RegisterCustomOpsLibrary(options_, ops_path, &handle));
    ort_.Check(ort_.CreateCpuMemoryInfo(kArenaAllocator, kDefaultMemory, &memory_));
  }

  // Outputs y0, y1, ... as floats; throws the runtime's message where it gives an error.
  std::vector<std::vector<float>> Run(const Case& test) const {
    OrtSession* session = nullptr;
    ort_.Check(ort_.CreateSessionFromArray(env_, test.model.data(), test.model.size(), options_, &session));
    std::vector<const char*> input_names, output_names;
    std::vector<OrtValue*> inputs;
    for (const NamedTensor& tensor : test.inputs) {
      OrtValue* value = nullptr;
      ort_.Check(ort_.CreateTensorWithDataAsOrtValue(memory_, const_cast<char*>(tensor.bytes.data()),
                                                     tensor.bytes.size(), tensor.dims.data(), tensor.dims.size(),
                                                     tensor.type, &value));
      input_names.push_back(tensor.name.c_str());
      inputs.push_back(value);
    }
    for (const NamedTensor& tensor : test.expected) output_names.push_back(tensor.name.c_str());
    if (output_names.empty()) output_names.push_back("y0");
    std::vector<OrtValue*> outputs(output_names.size(), nullptr);
    OrtStatus* status = ort_.Run(session, nullptr, input_names.data(), inputs.data(), inputs.size(),
                                 output_names.data(), output_names.size(), outputs.data());
    std::vector<std::vector<float>> values;
    for (OrtValue* output : outputs) values.push_back(status == nullptr ? Floats(output) : std::vector<float>());
    for (OrtValue* output : outputs) ort_.ReleaseValue(output);
    for (OrtValue* input : inputs) ort_.ReleaseValue(input);
    ort_.ReleaseSession(session);
    ort_.Check(status);
    return values;
  }

 private:
  std::vector<float> Floats(OrtValue* value) const {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    size_t count = 0;
    void* data = nullptr;
    ort_.Check(ort_.GetTensorTypeAndShape(value, &info));
    ort_.Check(ort_.GetTensorShapeElementCount(info, &count));
    ort_.ReleaseTensorTypeAndShapeInfo(info);
    ort_.Check(ort_.GetTensorMutableData(value, &data));
    const float* floats = static_cast<const float*>(data);
    return std::vector<float>(floats, floats + count);
  }

  Ort ort_;
  OrtEnv* env_ = nullptr;
  OrtSessionOptions* options_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
};

// What is wrong with an output; empty where nothing is.
std::string Difference(const std::vector<float>& found, const NamedTensor& expected, float tolerance) {
  std::vector<float> values(expected.bytes.size() / sizeof(float));
  std::memcpy(values.data(), expected.bytes.data(), expected.bytes.size());
  if (found.size() != values.size()) {
    return expected.name + " has " + std::to_string(found.size()) + " values, expected " +
           std::to_string(values.size());
  }
  float largest = 0, worst = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const float difference = std::fabs(found[i] - values[i]);
    largest = std::max(largest, std::fabs(values[i]));
    worst = difference <= worst ? worst : difference;  // a NaN is the worst
  }
  if (worst <= tolerance * largest) return "";
  return expected.name + " differs by " + std::to_string(worst) + " from values up to " + std::to_string(largest);
}

std::string Failure(const Runtime& runtime, const Case& test) {
  std::vector<std::vector<float>> found;
  try {
    found = runtime.Run(test);
  } catch (const std::exception& error) {
    if (!test.error.empty() && std::string(error.what()).find(test.error) != std::string::npos) return "";
    return error.what();
  }
  if (!test.error.empty()) return "no error, expected one with: " + test.error;
  for (size_t i = 0; i < found.size(); ++i) {
    std::string difference = Difference(found[i], test.expected[i], test.tolerance);
    if (!difference.empty()) return difference;
    if (!test.is_exact) continue;
    const std::string& bits = test.exact[i].bytes;
    if (bits.size() != found[i].size() * sizeof(float) || std::memcmp(bits.data(), found[i].data(), bits.size()) != 0) {
      return test.exact[i].name + " is not equal to the bit to what the machine that wrote the cases computed";
    }
  }
  return "";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::printf("usage: model_test ONNXRUNTIME_LIBRARY LFM_OPS_LIBRARY CASES_FILE\n");
    return 2;
  }
  int failures = 0, exact = 0;
  try {
    const Runtime runtime(argv[1], argv[2]);
    Reader reader(argv[3]);
    const auto count = reader.Next<uint32_t>();
    for (uint32_t i = 0; i < count; ++i) {
      const Case test(reader);
      const std::string failure = Failure(runtime, test);
      if (!failure.empty()) std::printf("FAIL: %s: %s\n", test.name.c_str(), failure.c_str());
      failures += !failure.empty();
      exact += test.is_exact;
    }
    if (failures == 0) {
      std::printf("ok: %u models, %d of them equal to the bit to the writing machine's\n", static_cast<unsigned>(count),
                  exact);
    }
  } catch (const std::exception& error) {
    std::printf("FAIL: %s\n", error.what());
    ++failures;
  }
  std::fflush(stdout);
  // Without the destructors of a runtime that was loaded by hand.
  std::_Exit(failures == 0 ? 0 : 1);
}
