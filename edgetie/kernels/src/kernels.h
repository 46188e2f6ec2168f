// The kernels' functions, one table per instruction set, and the data that they share.
//
// All tensors are row-major and dense. Nothing here depends on ONNX Runtime.

#ifndef EDGETIE_KERNELS_H
#define EDGETIE_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Threads to run tasks on: run(context, task, state, count) calls task(state, i) for each i < count.
typedef struct {
  void *context;
  void (*run)(void *context, void (*task)(void *state, size_t index), void *state, size_t count);
} Parallel;

// A quantized matrix (rows, columns) as MatMulNBits stores it. Element (n, k) is
// (value - zero_point) * scale + offset, with one of each of these per block of a row.
typedef struct {
  const uint8_t *values;       // (rows, blocks, block_size * bits / 8), 4-bit: even columns low
  const float *scales;         // (rows, blocks)
  const uint8_t *zero_points;  // (rows, blocks * bits / 8 rounded up), NULL: 2^(bits - 1)
  const float *offsets;        // (rows, blocks), NULL: 0
  size_t rows, columns, block_size, blocks;
  int bits;  // 8 or 4
} QuantizedMatrix;

enum { MOST_HEAD_SIZE = 512 };

// Attention of `tokens` queries of each batch item over a cache, to which their keys and values
// are appended before. Query heads are in groups, one after the other, that share a key-value
// head. Elements of the cache are float, or int8 where key_scale is not NULL.
typedef struct {
  size_t batch, tokens, heads, kv_heads, head_size;
  size_t new_tokens;  // `tokens`, or 0 if nothing is appended
  const float *query, *key, *value;  // (batch, tokens, heads or kv_heads, head_size), where the
  size_t query_stride, key_stride;   // next token is so many floats away; value: like key
  // past: (batch, kv_heads, past_capacity, head_size) or NULL; present: the same with `capacity`.
  // They may be the same memory; else present is filled with zeros behind the last token.
  const void *past_keys, *past_values;
  void *present_keys, *present_values;
  size_t past_capacity, capacity;
  const int32_t *last_positions;  // (batch): of the last token, past ones counted
  bool is_first;                  // the past has no tokens
  bool is_causal;
  size_t window;  // the last keys that a token sees; 0: all
  float scale, softcap;  // of scores; softcap * tanh(score / softcap) if it is not 0
  bool has_sink;         // a score that only counts in the softmax' sum:
  const float *sinks;    // (heads), NULL: 0
  // Rotary embedding of queries and new keys: cosines and sines (positions, rotary_size / 2).
  size_t rotary_size;  // elements of a head that are rotated; 0: none
  bool is_interleaved;
  const float *cosines, *sines;
  const int64_t *positions;  // (batch, tokens), NULL: as they are in the cache, where the
  size_t first_rotation;     // first one of a first prompt is this
  const float *key_scale, *value_scale;  // (1) or (kv_heads, head_size)
  bool is_scaled_by_channel;
  float *output;  // (batch, tokens, heads, head_size)
} Attention;

typedef struct Kernels {
  const char *name;

  // output (tokens, rows) = input (tokens, columns) times the transposed matrix, plus bias (rows)
  // if it is not NULL. Activations are rounded to 16 bits per step of a vector, or kept in float.
  // `scratch` has scratch_bytes(matrix, tokens) bytes, 64-byte aligned.
  void (*multiply)(const QuantizedMatrix *, const float *input, const float *bias, float *output,
                   size_t tokens, void *scratch, const Parallel *);
  size_t (*scratch_bytes)(const QuantizedMatrix *, size_t tokens);

  // output (columns): row `row` of the matrix, dequantized. Here the last block of a row is not
  // filled up: values has (rows, columns * bits / 8) bytes.
  void (*dequantize_row)(const QuantizedMatrix *, size_t row, float *output);

  // For each of `tokens` rows of `size` values: sum = input + skip + bias (skip and bias may be
  // NULL, sum too), output = sum / sqrt(mean(sum^2) + epsilon) * gain.
  void (*rms_norm)(const float *input, const float *skip, const float *bias, const float *gain,
                   float epsilon, float *output, float *sum, size_t tokens, size_t size);

  // Each of `tokens` rows of input has a gate and a value, `size` of each, in this order unless
  // second_is_gate. output = value * gate * sigmoid(alpha * (gate + cubic * gate^3)).
  void (*gated_activation)(const float *input, bool second_is_gate, float alpha, float cubic,
                           float *output, size_t tokens, size_t size);

  // Multiply each of `count` vectors of `size` values (a power of two) by the Hadamard matrix of
  // Sylvester's construction, times `scale`.
  void (*hadamard)(const float *input, float *output, size_t count, size_t size, float scale);

  // Columns `first` to `end` of output (tokens, columns) = start + left (tokens, inner) times right
  // (inner, columns). `start` may be NULL.
  void (*multiply_add)(const float *left, const float *right, const float *start, float *output,
                       size_t tokens, size_t inner, size_t columns, size_t first, size_t end);

  // `scratch` has attend_bytes(attention) bytes, 64-byte aligned.
  void (*attend)(const Attention *, void *scratch, const Parallel *);
  size_t (*attend_bytes)(const Attention *);
} Kernels;

// The kernels for this processor: the best set it has, or the one that the environment variable
// EDGETIE_INSTRUCTION_SET names, if the processor has it.
const Kernels *select_kernels(void);

#if defined(__x86_64__) || defined(_M_X64)
extern const Kernels kernels_sse2, kernels_avx2, kernels_avxvnni, kernels_avx512;
#elif defined(__aarch64__)
extern const Kernels kernels_neon, kernels_dotprod, kernels_i8mm;
#endif

#endif
