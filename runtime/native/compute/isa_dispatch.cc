// Asks the CPU for its instruction sets and picks the kernels; LFM_OPS_ISA overrides.
#include "isa_dispatch.h"

#include <cstdlib>
#include <stdexcept>

#include "amx/amx_check.h"

#if defined(__x86_64__) || defined(_M_X64)
#define LFM_X86_64 1
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) || defined(_M_ARM64)
#define LFM_AARCH64 1
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#endif
#endif

namespace lfm {

namespace {

struct CpuFeatures {
  bool avx2 = false;
  bool avx512vnni = false;
  bool amx = false;
  bool neon = false;
  bool dotprod = false;
  bool i8mm = false;
};

#if defined(LFM_X86_64)
struct CpuId {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

CpuId ReadCpuId(unsigned leaf, unsigned subleaf) {
  CpuId id;
#if defined(_MSC_VER) && !defined(__clang__)
  int registers[4];
  __cpuid(registers, 0);
  if (static_cast<unsigned>(registers[0]) < leaf) return id;
  __cpuidex(registers, static_cast<int>(leaf), static_cast<int>(subleaf));
  id = {static_cast<unsigned>(registers[0]), static_cast<unsigned>(registers[1]), static_cast<unsigned>(registers[2]),
        static_cast<unsigned>(registers[3])};
#else
  __get_cpuid_count(leaf, subleaf, &id.a, &id.b, &id.c, &id.d);
#endif
  return id;
}

// Which register states the operating system saves (XCR0).
unsigned long long SavedStates() {
#if defined(_MSC_VER) && !defined(__clang__)
  return _xgetbv(0);
#else
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<unsigned long long>(high) << 32) | low;
#endif
}

// Linux gives the tile registers to processes that ask for them. Android's sandbox could end one that does.
[[maybe_unused]] bool RequestTiles() {
#if defined(__linux__) && !defined(__ANDROID__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool Bit(unsigned long long value, int bit) { return (value >> bit & 1) != 0; }

CpuFeatures DetectFeatures() {
  CpuFeatures features;
  const CpuId basic = ReadCpuId(1, 0), extended = ReadCpuId(7, 0);
  if (!Bit(basic.c, 27)) return features;  // OSXSAVE
  const unsigned long long saved = SavedStates();
  const bool ymm = (saved & 0x6) == 0x6, zmm = (saved & 0xe6) == 0xe6, tiles = (saved & 0x60000) == 0x60000;
  features.avx2 = ymm && Bit(basic.c, 28) && Bit(basic.c, 12) && Bit(basic.c, 29) && Bit(extended.b, 5);
  features.avx512vnni = features.avx2 && zmm && Bit(extended.b, 16) && Bit(extended.b, 17) && Bit(extended.b, 30) &&
                        Bit(extended.b, 31) && Bit(extended.c, 11);
  features.amx = features.avx512vnni && tiles && Bit(extended.d, 24) && Bit(extended.d, 25);
#if defined(LFM_AMX_EMULATED)
  features.amx = features.avx512vnni;
#endif
  return features;
}
#elif defined(LFM_AARCH64)
CpuFeatures DetectFeatures() {
  CpuFeatures features;
  features.neon = true;
#if defined(__linux__)
  features.dotprod = (getauxval(AT_HWCAP) >> 20 & 1) != 0;
  features.i8mm = features.dotprod && (getauxval(AT_HWCAP2) >> 13 & 1) != 0;
#elif defined(__APPLE__)
  const auto has = [](const char* name) {
    int value = 0;
    size_t size = sizeof(value);
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
  };
  features.dotprod = has("hw.optional.arm.FEAT_DotProd");
  features.i8mm = features.dotprod && has("hw.optional.arm.FEAT_I8MM");
#elif defined(_WIN32)
  constexpr DWORD kDotprod = 43, kI8mm = 66;
  features.dotprod = IsProcessorFeaturePresent(kDotprod) != 0;
  features.i8mm = features.dotprod && IsProcessorFeaturePresent(kI8mm) != 0;
#endif
  return features;
}
#else
CpuFeatures DetectFeatures() { return {}; }
#endif

[[maybe_unused]] const CpuFeatures& Cpu() {
  static const CpuFeatures features = DetectFeatures();
  return features;
}

#if defined(LFM_HAVE_KERNELS_AMX) && defined(LFM_X86_64)
// Why the AMX kernel is not to be used although the CPU has AMX; null where it may be. Asked for once, and not before
// the kernel is wanted: who chooses another one meets no AMX instruction.
const char* AmxRefusal() {
  static const char* const refusal = []() -> const char* {
#if !defined(LFM_AMX_EMULATED)
    if (!RequestTiles()) return "amx: the system does not give its tile registers to this process";
#endif
    if (GiveSameProducts(*AmxKernels(), *Avx512VnniKernels())) return nullptr;
    return "amx: it does not give the results of avx512vnni here, so that it is not used";
  }();
  return refusal;
}

bool CanRunAmx() { return Cpu().amx && AmxKernels() != nullptr && AmxRefusal() == nullptr; }
#endif

// A table of this build, and whether this CPU can run it.
struct Candidate {
  const KernelTable* (*table)();
  bool (*can_run)();
};

// The best first.
constexpr Candidate kCandidates[] = {
#if defined(LFM_HAVE_KERNELS_AMX) && defined(LFM_X86_64)
    {AmxKernels, CanRunAmx},
#endif
#if defined(LFM_HAVE_KERNELS_AVX512VNNI)
    {Avx512VnniKernels, [] { return Cpu().avx512vnni; }},
#endif
#if defined(LFM_HAVE_KERNELS_AVX2)
    {Avx2Kernels, [] { return Cpu().avx2; }},
#endif
#if defined(LFM_HAVE_KERNELS_NEON_I8MM)
    {NeonI8mmKernels, [] { return Cpu().i8mm; }},
#endif
#if defined(LFM_HAVE_KERNELS_NEON_DOTPROD)
    {NeonDotprodKernels, [] { return Cpu().dotprod; }},
#endif
#if defined(LFM_HAVE_KERNELS_NEON)
    {NeonKernels, [] { return Cpu().neon; }},
#endif
    {ScalarKernels, [] { return true; }},
};

}  // namespace

std::vector<std::string> AvailableKernels() {
  std::vector<std::string> names;
  for (const Candidate& candidate : kCandidates) {
    if (candidate.table() != nullptr && candidate.can_run()) names.emplace_back(candidate.table()->name);
  }
  return names;
}

const char* RefusedKernels() {
#if defined(LFM_HAVE_KERNELS_AMX) && defined(LFM_X86_64)
  if (Cpu().amx && AmxKernels() != nullptr && AmxRefusal() != nullptr) return AmxRefusal();
#endif
  return "";
}

const KernelTable* FindKernels(const char* name) {
  const bool any = name == nullptr || *name == '\0';
  for (const Candidate& candidate : kCandidates) {
    const KernelTable* table = candidate.table();
    if (table != nullptr && (any || std::string(table->name) == name) && candidate.can_run()) return table;
  }
  return nullptr;
}

const KernelTable& SelectKernels() {
  const char* wanted = std::getenv("LFM_OPS_ISA");
  if (const KernelTable* table = FindKernels(wanted)) return *table;
  std::string choices;
  for (const std::string& name : AvailableKernels()) choices += (choices.empty() ? "" : ", ") + name;
  const std::string refused = std::string(wanted) == "amx" ? RefusedKernels() : "";
  throw std::runtime_error("LFM_OPS_ISA is '" + std::string(wanted) +
                           "', which this CPU or build does not have: choose from " + choices +
                           (refused.empty() ? "" : " (" + refused + ")"));
}

}  // namespace lfm
