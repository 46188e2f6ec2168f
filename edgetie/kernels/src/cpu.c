// Choose the instruction set for this processor.

#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>

// The registers that the operating system saves, as XGETBV returns them.
static unsigned saved_registers(void) {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

static bool has(const char *name) {
  const unsigned avx = 6, avx512 = 0xe6;  // bits of XGETBV
  unsigned a, b, c, d, b7, c7;
  if (!strcmp(name, "sse2")) return true;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & 1u << 27)) return false;  // OSXSAVE
  const bool has_fma = c & 1u << 12;
  if ((saved_registers() & avx) != avx || !__get_cpuid_count(7, 0, &a, &b7, &c7, &d)) return false;
  const bool has_avx2 = has_fma && (b7 & 1u << 5);
  if (!strcmp(name, "avx2")) return has_avx2;
  if (!strcmp(name, "avxvnni"))
    return has_avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
  const unsigned wanted = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
  return (saved_registers() & avx512) == avx512 && (b7 & wanted) == wanted && (c7 & 1u << 11);
}

static const Kernels *const sets[] = {&kernels_avx512, &kernels_avxvnni, &kernels_avx2,
                                      &kernels_sse2};
#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>

static bool has(const char *name) {
  unsigned long features = getauxval(16), more = getauxval(26);  // AT_HWCAP, AT_HWCAP2
  if (!strcmp(name, "i8mm")) return (more & 1ul << 13) && (features & 1ul << 20);
  if (!strcmp(name, "dotprod")) return features & 1ul << 20;
  return true;
}
#elif defined(__APPLE__)
#include <sys/sysctl.h>

static bool has_feature(const char *name) {
  int value = 0;
  size_t size = sizeof value;
  return !sysctlbyname(name, &value, &size, NULL, 0) && value;
}

static bool has(const char *name) {
  if (!strcmp(name, "i8mm")) return has_feature("hw.optional.arm.FEAT_I8MM");
  if (!strcmp(name, "dotprod")) return has_feature("hw.optional.arm.FEAT_DotProd");
  return true;
}
#elif defined(_WIN32)
#include <windows.h>

static bool has(const char *name) {
  if (!strcmp(name, "i8mm")) return IsProcessorFeaturePresent(58) && has("dotprod");
  if (!strcmp(name, "dotprod")) return IsProcessorFeaturePresent(43);
  return true;
}
#endif

static const Kernels *const sets[] = {&kernels_i8mm, &kernels_dotprod, &kernels_neon};
#else
#error "edgetie's kernels are for x86-64 and ARM64"
#endif

const Kernels *select_kernels(void) {
  static const Kernels *_Atomic selected;
  const Kernels *best = selected;
  if (best) return best;
  const char *wanted = getenv("EDGETIE_INSTRUCTION_SET");
  const size_t count = sizeof sets / sizeof *sets;
  for (size_t i = 0; i < count; i++) {
    if (!has(sets[i]->name)) continue;
    if (!best) best = sets[i];
    if (wanted && !strcmp(wanted, sets[i]->name)) best = sets[i];
  }
  return selected = best;
}
