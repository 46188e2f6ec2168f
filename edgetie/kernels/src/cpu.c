// Choose the instruction set for this processor.

#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>

static bool has(const char *name) {
  __builtin_cpu_init();
  if (!strcmp(name, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
  if (!strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!strcmp(name, "avxvnni")) {
    unsigned a, b, c, d;
    return has("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
  }
  return true;
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
  static const Kernels *selected;
  if (selected) return selected;
  const char *wanted = getenv("EDGETIE_INSTRUCTION_SET");
  const size_t count = sizeof sets / sizeof *sets;
  const Kernels *best = NULL;
  for (size_t i = 0; i < count; i++) {
    if (!has(sets[i]->name)) continue;
    if (!best) best = sets[i];
    if (wanted && !strcmp(wanted, sets[i]->name)) best = sets[i];
  }
  return selected = best;
}
