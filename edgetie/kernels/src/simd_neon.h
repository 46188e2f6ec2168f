// Vectors of ARM64's NEON, with products of bytes where the set defines HAS_DOT, and products of
// unsigned with signed bytes where it defines HAS_I8MM.

#include <arm_neon.h>

enum { LANES = 4 };
typedef float32x4_t Floats;
typedef int32x4_t Ints;
typedef uint8x16_t Bytes;

INLINE Floats load(const float *p) { return vld1q_f32(p); }
INLINE Floats load_part(const float *p, size_t n) {
  float values[4] = {0};
  __builtin_memcpy(values, p, n * sizeof *p);
  return load(values);
}
INLINE void store(float *p, Floats v) { vst1q_f32(p, v); }
INLINE void store_part(float *p, Floats v, size_t n) {
  float values[4];
  store(values, v);
  __builtin_memcpy(p, values, n * sizeof *p);
}
INLINE Floats set(float x) { return vdupq_n_f32(x); }
INLINE Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
INLINE Floats sub(Floats a, Floats b) { return vsubq_f32(a, b); }
INLINE Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
INLINE Floats mul_add(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
INLINE Floats max(Floats a, Floats b) { return vmaxq_f32(a, b); }
// b where a or b is NaN.
INLINE Floats min(Floats a, Floats b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
INLINE Floats divide(Floats a, Floats b) { return vdivq_f32(a, b); }
INLINE Floats absolute(Floats a) { return vabsq_f32(a); }
INLINE float sum(Floats v) { return vaddvq_f32(v); }
INLINE float maximum(Floats v) { return vmaxvq_f32(v); }
// Store the sums of a, b, c and d.
INLINE void store_sums(float *p, Floats a, Floats b, Floats c, Floats d) {
  store(p, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}

INLINE Floats to_floats(Ints v) { return vcvtq_f32_s32(v); }
INLINE Ints to_ints(Floats v) { return vcvtnq_s32_f32(v); }
INLINE Ints zero_ints(void) { return vdupq_n_s32(0); }
INLINE Ints shift_left_8(Ints v) { return vshlq_n_s32(v, 8); }
INLINE void store_ints(int32_t *p, Ints v) { vst1q_s32(p, v); }
INLINE Floats bytes_to_floats(const uint8_t *p, size_t n) {
  float values[4] = {0};
  for (size_t i = 0; i < n; i++) values[i] = p[i];
  return load(values);
}
INLINE Floats nibbles_to_floats(const uint8_t *p, size_t n) {
  float values[4] = {0};
  for (size_t i = 0; i < n; i++) values[i] = i % 2 ? p[i / 2] >> 4 : p[i / 2] & 15;
  return load(values);
}
INLINE Floats signed_to_floats(const int8_t *p, size_t n) {
  uint64_t bytes = 0;
  __builtin_memcpy(&bytes, p, n);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(bytes)))));
}
// 2^n for -127 <= n <= 127, where -127 gives 0.
INLINE Floats power_of_two(Ints n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}

INLINE Bytes load_bytes(const uint8_t *p) { return vld1q_u8(p); }
INLINE Bytes load_bytes_part(const uint8_t *p, size_t n) {
  uint8_t bytes[16] = {0};
  __builtin_memcpy(bytes, p, n);
  return load_bytes(bytes);
}
INLINE Bytes low_nibbles(Bytes v) { return vandq_u8(v, vdupq_n_u8(15)); }
INLINE Bytes high_nibbles(Bytes v) { return vshrq_n_u8(v, 4); }

// The 16 values of 4 bits in 8 bytes.
INLINE void unpack_8(const uint8_t *p, uint8_t *values) {
  const uint8x8_t v = vld1_u8(p);
  const uint8x8x2_t pairs = {{vand_u8(v, vdup_n_u8(15)), vshr_n_u8(v, 4)}};
  vst2_u8(values, pairs);
}

// The scales of the blocks that start at p, each for 2^shift lanes.
INLINE Floats spread(const float *p, size_t n, int shift) {
  float values[4] = {0};
  for (size_t i = 0; i < 4; i++)
    if ((i >> shift) < n) values[i] = p[i >> shift];
  return load(values);
}

#if HAS_I8MM
enum { WEIGHT_OFFSET = 0 };
INLINE Bytes weight_bytes(Bytes v) { return v; }
INLINE Ints dot(Ints sums, Bytes weights, Bytes activations) {
  return vusdotq_s32(sums, weights, vreinterpretq_s8_u8(activations));
}
#elif HAS_DOT
enum { WEIGHT_OFFSET = 128 };  // both factors are signed
INLINE Bytes weight_bytes(Bytes v) { return veorq_u8(v, vdupq_n_u8(128)); }
INLINE Ints dot(Ints sums, Bytes weights, Bytes activations) {
  return vdotq_s32(sums, vreinterpretq_s8_u8(weights), vreinterpretq_s8_u8(activations));
}
#else
enum { WEIGHT_OFFSET = 0 };
INLINE Bytes weight_bytes(Bytes v) { return v; }
INLINE Ints add_ints(Ints a, Ints b) { return vaddq_s32(a, b); }
INLINE Ints dot_even_odd(Bytes weights, Bytes even, Bytes odd) {
  const uint16x8_t words = vreinterpretq_u16_u8(weights);
  const int16x8_t x = vreinterpretq_s16_u16(vandq_u16(words, vdupq_n_u16(255)));
  const int16x8_t y = vreinterpretq_s16_u16(vshrq_n_u16(words, 8));
  const int16x8_t a = vreinterpretq_s16_u8(even), b = vreinterpretq_s16_u8(odd);
  const int32x4_t low = vmull_s16(vget_low_s16(x), vget_low_s16(a));
  const int32x4_t high = vmull_high_s16(x, a);
  return vpaddq_s32(vmlal_s16(low, vget_low_s16(y), vget_low_s16(b)), vmlal_high_s16(high, y, b));
}
#endif
#if HAS_DOT
INLINE Bytes broadcast_4(const uint8_t *p) {
  uint32_t four;
  __builtin_memcpy(&four, p, 4);
  return vreinterpretq_u8_u32(vdupq_n_u32(four));
}
#endif
enum { TILE_ROWS = 12 };
#define EACH_TILE_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
