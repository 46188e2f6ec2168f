// Vectors of AVX-512 with VNNI.

#include <immintrin.h>

enum { LANES = 16 };
typedef __m512 Floats;
typedef __m512i Ints;
typedef __m512i Bytes;

INLINE __mmask16 first_lanes(size_t count) { return (__mmask16)((1u << count) - 1); }

INLINE Floats load(const float *p) { return _mm512_loadu_ps(p); }
INLINE Floats load_part(const float *p, size_t n) {
  return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
INLINE void store(float *p, Floats v) { _mm512_storeu_ps(p, v); }
INLINE void store_part(float *p, Floats v, size_t n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), v);
}
INLINE Floats set(float x) { return _mm512_set1_ps(x); }
INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
INLINE Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
INLINE Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
INLINE Floats mul_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
INLINE Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
INLINE Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }
INLINE Floats absolute(Floats a) { return _mm512_abs_ps(a); }
// Each lane gets that of the lane whose number differs in the bit `distance`.
INLINE Floats exchange(Floats v, const int distance) {
  if (distance == 8) return _mm512_shuffle_f32x4(v, v, 0x4e);
  if (distance == 4) return _mm512_shuffle_f32x4(v, v, 0xb1);
  return distance == 1 ? _mm512_permute_ps(v, 0xb1) : _mm512_permute_ps(v, 0x4e);
}
INLINE float sum(Floats v) { return _mm512_reduce_add_ps(v); }
INLINE float maximum(Floats v) { return _mm512_reduce_max_ps(v); }

// Store the sums of a, b, c and d.
INLINE void store_sums(float *p, Floats a, Floats b, Floats c, Floats d) {
  a = add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  c = add(_mm512_shuffle_f32x4(c, d, 0x88), _mm512_shuffle_f32x4(c, d, 0xdd));
  a = add(_mm512_shuffle_f32x4(a, c, 0x88), _mm512_shuffle_f32x4(a, c, 0xdd));
  a = add(a, _mm512_permute_ps(a, 0x4e));
  a = add(a, _mm512_permute_ps(a, 0xb1));
  _mm_storeu_ps(p, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, a)));
}

INLINE Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
INLINE Ints to_ints(Floats v) { return _mm512_cvtps_epi32(v); }
INLINE Ints zero_ints(void) { return _mm512_setzero_si512(); }
INLINE Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
INLINE Ints shift_left_8(Ints v) { return _mm512_slli_epi32(v, 8); }
INLINE void store_ints(int32_t *p, Ints v) { _mm512_storeu_si512(p, v); }
INLINE Floats bytes_to_floats(const uint8_t *p, size_t n) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first_lanes(n), p)));
}
INLINE Floats nibbles_to_floats(const uint8_t *p, size_t n) {
  const __m128i pairs = _mm_cvtepu8_epi16(_mm_maskz_loadu_epi8(first_lanes((n + 1) / 2), p));
  const __m128i values =
      _mm_and_si128(_mm_or_si128(pairs, _mm_slli_epi16(pairs, 4)), _mm_set1_epi8(15));
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(values));
}

INLINE Floats signed_to_floats(const int8_t *p, size_t n) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first_lanes(n), p)));
}
// 2^n for -127 <= n <= 127, where -127 gives 0.
INLINE Floats power_of_two(Ints n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}

INLINE Bytes load_bytes(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE Bytes load_bytes_part(const uint8_t *p, size_t n) {
  return _mm512_maskz_loadu_epi8(((__mmask64)1 << n) - 1, p);
}
INLINE Bytes low_nibbles(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
INLINE Bytes high_nibbles(Bytes v) {
  return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15));
}

// The 16 values of 4 bits in 8 bytes.
INLINE void unpack_8(const uint8_t *p, uint8_t *values) {
  const __m128i pairs = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)p));
  const __m128i both = _mm_or_si128(pairs, _mm_slli_epi16(pairs, 4));
  _mm_storeu_si128((__m128i *)values, _mm_and_si128(both, _mm_set1_epi8(15)));
}

// The scales of the blocks that start at p, each for 2^shift lanes.
INLINE Floats spread(const float *p, size_t n, int shift) {
  const Ints lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_permutexvar_ps(_mm512_srl_epi32(lane, _mm_cvtsi32_si128(shift)),
                               load_part(p, n));
}

#define HAS_DOT 1
enum { WEIGHT_OFFSET = 0 };
INLINE Bytes weight_bytes(Bytes v) { return v; }
typedef Ints Sums;
INLINE Sums zero_sums(void) { return zero_ints(); }
INLINE Sums shift_sums(Sums v) { return shift_left_8(v); }
INLINE Ints lane_sums(Sums v) { return v; }
INLINE Sums dot(Sums sums, Bytes weights, Bytes activations) {
  return _mm512_dpbusd_epi32(sums, weights, activations);
}

// A tile multiplies four columns of a row by LANES tokens, or eight columns by half as many.
enum { TILE_COLUMNS = 4, TILE_GROUP = 4, TILE_BYTES = 4, FOLD = 2 };
typedef Bytes TileWeights, TileActivations;
INLINE TileWeights load_tile_weights(const uint8_t *p, const int fold) {
  int32_t four;
  long long eight;
  if (fold == 2) {
    __builtin_memcpy(&eight, p, 8);
    return _mm512_set1_epi64(eight);
  }
  __builtin_memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}
INLINE TileActivations load_tile_activations(const uint8_t *p, size_t lanes) {
  (void)lanes;
  return load_bytes(p);
}
INLINE Ints dot_tile(Ints sums, TileWeights weights, TileActivations activations, int row) {
  (void)row;
  return dot(sums, weights, activations);
}

// How many tokens are multiplied faster without tiles.
enum { FEW_TOKENS_8_BITS = 6, FEW_TOKENS_4_BITS = 8 };

enum { TILE_ROWS = 12 };
#define EACH_TILE_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
