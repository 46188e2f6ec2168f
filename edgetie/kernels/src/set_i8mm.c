// The kernels compiled for i8mm.

#if defined(__aarch64__)
#define TARGET "arch=armv8.2-a+dotprod+i8mm"
#define SET_NAME "i8mm"
#define SET_KERNELS kernels_i8mm
#define HAS_DOT 1
#define HAS_I8MM 1
#define SIMD_HEADER "simd_neon.h"
#include "set.inc"
#endif
