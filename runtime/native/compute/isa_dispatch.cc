// Asks the CPU for its instruction sets and picks the kernels; LFM_OPS_ISA overrides.
#include "isa_dispatch.h"

#include <cstdlib>
#include <stdexcept>

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

// Linux gives the tile registers to processes that ask for them.
bool RequestTiles() {
#if defined(__linux__)
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
#if defined(LFM_HAVE_KERNELS_AMX)
  features.amx = features.avx512vnni && tiles && Bit(extended.d, 24) && Bit(extended.d, 25) && RequestTiles();
#else
  (void)tiles;
  (void)RequestTiles;
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

std::vector<const KernelTable*> FindAvailable() {
  const CpuFeatures cpu = DetectFeatures();
  std::vector<const KernelTable*> tables;
  [[maybe_unused]] const auto add = [&tables](bool can_run, const KernelTable* table) {
    if (can_run && table != nullptr) tables.push_back(table);
  };
  (void)cpu;
#if defined(LFM_HAVE_KERNELS_AMX)
  add(cpu.amx, AmxKernels());
#endif
#if defined(LFM_HAVE_KERNELS_AVX512VNNI)
  add(cpu.avx512vnni, Avx512VnniKernels());
#endif
#if defined(LFM_HAVE_KERNELS_AVX2)
  add(cpu.avx2, Avx2Kernels());
#endif
#if defined(LFM_HAVE_KERNELS_NEON_I8MM)
  add(cpu.i8mm, NeonI8mmKernels());
#endif
#if defined(LFM_HAVE_KERNELS_NEON_DOTPROD)
  add(cpu.dotprod, NeonDotprodKernels());
#endif
#if defined(LFM_HAVE_KERNELS_NEON)
  add(cpu.neon, NeonKernels());
#endif
  tables.push_back(ScalarKernels());
  return tables;
}

const std::vector<const KernelTable*>& Available() {
  static const std::vector<const KernelTable*> tables = FindAvailable();
  return tables;
}

}  // namespace

std::vector<std::string> AvailableKernels() {
  std::vector<std::string> names;
  for (const KernelTable* table : Available()) names.emplace_back(table->name);
  return names;
}

const KernelTable* FindKernels(const char* name) {
  if (name == nullptr || *name == '\0') return Available().front();
  for (const KernelTable* table : Available()) {
    if (std::string(table->name) == name) return table;
  }
  return nullptr;
}

const KernelTable& SelectKernels() {
  const char* wanted = std::getenv("LFM_OPS_ISA");
  if (const KernelTable* table = FindKernels(wanted)) return *table;
  std::string choices;
  for (const std::string& name : AvailableKernels()) choices += (choices.empty() ? "" : ", ") + name;
  throw std::runtime_error("LFM_OPS_ISA is '" + std::string(wanted) +
                           "', which this CPU or build does not have: choose from " + choices);
}

}  // namespace lfm
