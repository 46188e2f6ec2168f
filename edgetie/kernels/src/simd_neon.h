// Vectors of ARM64's NEON, with products of bytes where the set defines HAS_DOT, and with matrix
// products of unsigned and signed bytes where it defines HAS_I8MM.
//
// A step takes four vectors of weights, and each lane of its sums 16 bytes: vectors of four lanes
// are short, and cores that execute in order need products that do not wait for each other.

#include <arm_neon.h>

enum { LANES = 4 };
typedef float32x4_t Floats;
typedef int32x4_t Ints;
typedef uint8x16x4_t Bytes;
typedef int32x4x4_t Sums;

#define EACH_VECTOR _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++)

INLINE Floats load(const float *p) { return vld1q_f32(p); }
INLINE Floats load_part(const float *p, size_t n) {
  if (n == 4) return load(p);
  Floats v = vdupq_n_f32(0);
  if (n > 0) v = vsetq_lane_f32(p[0], v, 0);
  if (n > 1) v = vsetq_lane_f32(p[1], v, 1);
  if (n > 2) v = vsetq_lane_f32(p[2], v, 2);
  return v;
}
INLINE void store(float *p, Floats v) { vst1q_f32(p, v); }
INLINE void store_part(float *p, Floats v, size_t n) {
  if (n == 4) {
    store(p, v);
    return;
  }
  if (n > 0) vst1q_lane_f32(p, v, 0);
  if (n > 1) vst1q_lane_f32(p + 1, v, 1);
  if (n > 2) vst1q_lane_f32(p + 2, v, 2);
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
// Each lane gets that of the lane whose number differs in the bit `distance`.
INLINE Floats exchange(Floats v, const int distance) {
  return distance == 1 ? vrev64q_f32(v) : vextq_f32(v, v, 2);
}
INLINE float sum(Floats v) { return vaddvq_f32(v); }
INLINE float maximum(Floats v) { return vmaxvq_f32(v); }
// Store the sums of a, b, c and d.
INLINE void store_sums(float *p, Floats a, Floats b, Floats c, Floats d) {
  store(p, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}

INLINE Floats to_floats(Ints v) { return vcvtq_f32_s32(v); }
INLINE Ints to_ints(Floats v) { return vcvtnq_s32_f32(v); }
INLINE Ints zero_ints(void) { return vdupq_n_s32(0); }
INLINE Ints add_ints(Ints a, Ints b) { return vaddq_s32(a, b); }
INLINE Ints shift_left_8(Ints v) { return vshlq_n_s32(v, 8); }
INLINE void store_ints(int32_t *p, Ints v) { vst1q_s32(p, v); }
INLINE uint32_t load_4(const uint8_t *p, size_t n) {
  uint32_t bytes = p[0];
  if (n == 4) __builtin_memcpy(&bytes, p, 4);
  if (n == 2 || n == 3) bytes |= (uint32_t)p[1] << 8;
  if (n == 3) bytes |= (uint32_t)p[2] << 16;
  return bytes;
}
INLINE Floats bytes_to_floats(const uint8_t *p, size_t n) {
  const uint16x8_t words = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(load_4(p, n))));
  return vcvtq_f32_u32(vmovl_u16(vget_low_u16(words)));
}
INLINE Floats nibbles_to_floats(const uint8_t *p, size_t n) {
  uint8_t values[4] = {p[0] & 15, p[0] >> 4};
  if (n > 2) values[2] = p[1] & 15, values[3] = p[1] >> 4;
  return bytes_to_floats(values, 4);
}
INLINE Floats signed_to_floats(const int8_t *p, size_t n) {
  const uint32_t bytes = load_4((const uint8_t *)p, n);
  const int16x8_t words = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(bytes)));
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
}
// 2^n for -127 <= n <= 127, where -127 gives 0.
INLINE Floats power_of_two(Ints n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}

INLINE Bytes load_bytes(const uint8_t *p) {
  Bytes v;
  EACH_VECTOR v.val[i] = vld1q_u8(p + 16 * i);
  return v;
}
INLINE Bytes load_bytes_part(const uint8_t *p, size_t n) {
  uint8_t bytes[64] = {0};
  __builtin_memcpy(bytes, p, n);
  return load_bytes(bytes);
}
INLINE Bytes low_nibbles(Bytes v) {
  EACH_VECTOR v.val[i] = vandq_u8(v.val[i], vdupq_n_u8(15));
  return v;
}
INLINE Bytes high_nibbles(Bytes v) {
  EACH_VECTOR v.val[i] = vshrq_n_u8(v.val[i], 4);
  return v;
}

// The 16 values of 4 bits in 8 bytes.
INLINE void unpack_8(const uint8_t *p, uint8_t *values) {
  const uint8x8_t v = vld1_u8(p);
  const uint8x8x2_t pairs = {{vand_u8(v, vdup_n_u8(15)), vshr_n_u8(v, 4)}};
  vst2_u8(values, pairs);
}

// The scales of the blocks that start at p, each for 2^shift lanes: 1 or 2.
INLINE Floats spread(const float *p, size_t n, int shift) {
  const Floats v = load_part(p, n);
  return shift ? vzip1q_f32(v, v) : v;
}

INLINE Ints lane_sums(Sums v) {
  return vpaddq_s32(vpaddq_s32(v.val[0], v.val[1]), vpaddq_s32(v.val[2], v.val[3]));
}

#if HAS_DOT

#if HAS_I8MM
enum { WEIGHT_OFFSET = 0 };
INLINE Bytes weight_bytes(Bytes v) { return v; }
#else
enum { WEIGHT_OFFSET = 128 };  // both factors are signed
INLINE Bytes weight_bytes(Bytes v) {
  EACH_VECTOR v.val[i] = veorq_u8(v.val[i], vdupq_n_u8(128));
  return v;
}
#endif

INLINE Sums zero_sums(void) {
  Sums sums;
  EACH_VECTOR sums.val[i] = zero_ints();
  return sums;
}
INLINE Sums shift_sums(Sums sums) {
  EACH_VECTOR sums.val[i] = shift_left_8(sums.val[i]);
  return sums;
}
INLINE Sums dot(Sums sums, Bytes weights, Bytes activations) {
  EACH_VECTOR {
    const int8x16_t factors = vreinterpretq_s8_u8(activations.val[i]);
#if HAS_I8MM
    sums.val[i] = vusdotq_s32(sums.val[i], weights.val[i], factors);
#else
    sums.val[i] = vdotq_s32(sums.val[i], vreinterpretq_s8_u8(weights.val[i]), factors);
#endif
  }
  return sums;
}

#else

enum { WEIGHT_OFFSET = 0 };
INLINE Bytes weight_bytes(Bytes v) { return v; }
INLINE Ints dot_even_odd(Bytes weights, Bytes even, Bytes odd) {
  Sums sums;
  EACH_VECTOR {
    const uint16x8_t words = vreinterpretq_u16_u8(weights.val[i]);
    const int16x8_t x = vreinterpretq_s16_u16(vandq_u16(words, vdupq_n_u16(255)));
    const int16x8_t y = vreinterpretq_s16_u16(vshrq_n_u16(words, 8));
    const int16x8_t a = vreinterpretq_s16_u8(even.val[i]), b = vreinterpretq_s16_u8(odd.val[i]);
    sums.val[i] = vmull_s16(vget_low_s16(x), vget_low_s16(a));
    sums.val[i] = vmlal_high_s16(sums.val[i], x, a);
    sums.val[i] = vmlal_s16(sums.val[i], vget_low_s16(y), vget_low_s16(b));
    sums.val[i] = vmlal_high_s16(sums.val[i], y, b);
  }
  return lane_sums(sums);
}

#endif

#if HAS_I8MM

// A tile multiplies pairs of rows, whose columns alternate in groups of 8, by pairs of tokens.
enum { TILE_COLUMNS = 8, TILE_GROUP = 8, TILE_BYTES = 16, FOLD = 1 };
typedef uint8x16_t TileWeights;
typedef int8x16x2_t TileActivations;
INLINE TileWeights load_tile_weights(const uint8_t *p, const int fold) {
  (void)fold;
  return vld1q_u8(p);
}
INLINE TileActivations load_tile_activations(const uint8_t *p, size_t lanes) {
  (void)lanes;
  const TileActivations v = {{vld1q_s8((const int8_t *)p), vld1q_s8((const int8_t *)p + 16)}};
  return v;
}
INLINE Ints dot_tile(Ints sums, TileWeights weights, TileActivations activations, int row) {
  return vusmmlaq_s32(sums, weights, activations.val[row % 2]);
}
INLINE Ints low_halves(Ints a, Ints b) {
  return vcombine_s32(vget_low_s32(a), vget_low_s32(b));
}
INLINE Ints high_halves(Ints a, Ints b) {
  return vcombine_s32(vget_high_s32(a), vget_high_s32(b));
}

#elif HAS_DOT

// Products of 16 columns take their weights by lane: a broadcast would occupy a unit of products.
enum { TILE_COLUMNS = 16, TILE_GROUP = 4, TILE_BYTES = 16, FOLD = 1 };
typedef int8x16_t TileWeights;
typedef int8x16x4_t TileActivations;
INLINE TileWeights load_tile_weights(const uint8_t *p, const int fold) {
  (void)fold;
  return vld1q_s8((const int8_t *)p);
}
INLINE TileActivations load_tile_activations(const uint8_t *p, size_t lanes) {
  TileActivations v;
  EACH_VECTOR v.val[i] = vld1q_s8((const int8_t *)p + TILE_GROUP * lanes * (size_t)i);
  return v;
}
INLINE Ints dot_tile(Ints sums, TileWeights weights, TileActivations activations, int row) {
  (void)row;
  sums = vdotq_laneq_s32(sums, activations.val[0], weights, 0);
  sums = vdotq_laneq_s32(sums, activations.val[1], weights, 1);
  sums = vdotq_laneq_s32(sums, activations.val[2], weights, 2);
  return vdotq_laneq_s32(sums, activations.val[3], weights, 3);
}

#endif

// How many tokens are multiplied faster without tiles.
enum { FEW_TOKENS_8_BITS = 8, FEW_TOKENS_4_BITS = 8 };

enum { TILE_ROWS = 8 };
#define EACH_TILE_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define EACH_TILE_PAIR(X) X(0, 1) X(2, 3) X(4, 5) X(6, 7)
