// The kernels compiled for avxvnni.

#if defined(__x86_64__) || defined(_M_X64)
#define TARGET "avx2,fma,avxvnni"
#define SET_NAME "avxvnni"
#define SET_KERNELS kernels_avxvnni
#define HAS_DOT 1
#define SIMD_HEADER "simd_avx2.h"
#include "set.inc"
#endif
