// Calls the kernels with threads, on memory of exactly the size that they may use, for sanitizers.
//
// driver SEED ROUNDS: prints the instruction set; fails if a result depends on the threads.

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels.h"
#include "team.h"

enum { THREADS = 3 };

static uint64_t seed;

static size_t below(size_t limit) {  // xorshift64*
  seed ^= seed >> 12, seed ^= seed << 25, seed ^= seed >> 27;
  return (size_t)((seed * 2685821657736338717u) >> 33) % limit;
}

// Memory of a round: from the heap, or in front of a page that may not be read, which also finds
// what sanitizers do not see, as loads with a mask.

static struct {
  void *memory;
  size_t mapped;  // 0: from the heap
} held[64];
static size_t held_count;
static bool guarded;

static void *get(size_t bytes, size_t alignment) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE), mapped = (bytes / page + 2) * page;
  void *memory = NULL;
  if (held_count == sizeof held / sizeof *held) abort();
  if (!guarded) {
    const size_t offset = alignment == 1 ? below(16) : 0;
    const size_t least = alignment < sizeof memory ? sizeof memory : alignment;
    if (posix_memalign(&memory, least, offset + bytes)) abort();
    held[held_count].memory = memory, held[held_count++].mapped = 0;
    return (char *)memory + offset;
  }
  memory = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char *end = (char *)memory + mapped - page;
  if (memory == MAP_FAILED || mprotect(end, page, PROT_NONE)) abort();
  held[held_count].memory = memory, held[held_count++].mapped = mapped;
  return end - (bytes + alignment - 1) / alignment * alignment;
}

static void release_all(void) {
  while (held_count) {
    held_count--;
    if (held[held_count].mapped)
      munmap(held[held_count].memory, held[held_count].mapped);
    else
      free(held[held_count].memory);
  }
}

static float *get_floats(size_t count) {
  float *values = get(count * sizeof *values, sizeof *values);
  for (size_t i = 0; i < count; i++) values[i] = (float)below(20001) / 10000 - 1;
  return values;
}

// Activations with outliers, tiny and zero tokens, and values that are not finite.
static float *get_activations(size_t tokens, size_t size) {
  float *values = get_floats(tokens * size);
  for (size_t t = 0; t < tokens; t++) {
    float *token = values + t * size;
    const size_t kind = below(10), at = below(size);
    if (kind == 0) token[at] = 1e9f;
    if (kind == 1) memset(token, 0, size * sizeof *token);
    if (kind == 2) token[at] = INFINITY;
    if (kind == 3) token[at] = NAN;
    if (kind == 4)
      for (size_t i = 0; i < size; i++) token[i] *= 1e-40f;
  }
  return values;
}

static uint8_t *get_bytes(size_t count) {
  uint8_t *values = get(count, 1);
  for (size_t i = 0; i < count; i++) values[i] = (uint8_t)below(256);
  return values;
}

// Threads

typedef struct {
  void (*task)(void *, size_t);
  void *state;
  size_t count;
  atomic_size_t next;
} Work;

static void *work_on(void *argument) {
  Work *work = argument;
  for (size_t i; (i = atomic_fetch_add(&work->next, 1)) < work->count;) work->task(work->state, i);
  return NULL;
}

static void run_with_threads(void *context, void (*task)(void *, size_t), void *state,
                             size_t count) {
  pthread_t threads[THREADS];
  Work work = {task, state, count, 0};
  (void)context;
  for (size_t i = 0; i < THREADS; i++)
    if (pthread_create(&threads[i], NULL, work_on, &work)) abort();
  for (size_t i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
}

static void run_alone(void *context, void (*task)(void *, size_t), void *state, size_t count) {
  (void)context;
  for (size_t i = 0; i < count; i++) task(state, i);
}

static const Parallel threaded = {NULL, run_with_threads}, alone = {NULL, run_alone};

static void require_equal(const float *a, const float *b, size_t count, const char *what) {
  for (size_t i = 0; i < count; i++)
    if (a[i] != b[i] && (a[i] == a[i] || b[i] == b[i])) {
      fprintf(stderr, "%s: element %zu is %g alone, %g with threads\n", what, i, a[i], b[i]);
      exit(1);
    }
}

// Kernels

static QuantizedMatrix random_matrix(bool filled_up) {
  QuantizedMatrix matrix = {.bits = below(2) ? 8 : 4, .block_size = (size_t)16 << below(7)};
  const size_t bits = (size_t)matrix.bits;
  matrix.rows = 1 + below(below(4) ? 40 : 300);
  matrix.columns = 1 + below(below(2) ? 2 * matrix.block_size : 600);
  if (!filled_up && bits == 4) matrix.columns += matrix.columns % 2;
  matrix.blocks = (matrix.columns + matrix.block_size - 1) / matrix.block_size;
  const size_t row = filled_up ? matrix.blocks * matrix.block_size : matrix.columns;
  matrix.values = get_bytes(matrix.rows * row * bits / 8);
  matrix.scales = get_floats(matrix.rows * matrix.blocks);
  if (below(2)) matrix.offsets = get_floats(matrix.rows * matrix.blocks);
  if (below(2)) matrix.zero_points = get_bytes(matrix.rows * ((matrix.blocks * bits + 7) / 8));
  return matrix;
}

static void multiply(const Kernels *kernels) {
  static const size_t many[] = {9, 16, 17, 33, 64, 130, 300};
  const QuantizedMatrix matrix = random_matrix(true);
  const size_t tokens = below(3) ? 1 + below(9) : many[below(sizeof many / sizeof *many)];
  float *input = get_activations(tokens, matrix.columns);
  float *bias = below(2) ? get_floats(matrix.rows) : NULL;
  float *output = get_floats(tokens * matrix.rows), *other = get_floats(tokens * matrix.rows);
  void *scratch = get(kernels->scratch_bytes(&matrix, tokens), 64);
  kernels->multiply(&matrix, input, bias, output, tokens, scratch, &alone);
  kernels->multiply(&matrix, input, bias, other, tokens, scratch, &threaded);
  require_equal(output, other, tokens * matrix.rows, "multiply");
}

static void dequantize(const Kernels *kernels) {
  const QuantizedMatrix matrix = random_matrix(false);
  float *output = get_floats(matrix.columns);
  for (size_t row = 0; row < matrix.rows; row++) kernels->dequantize_row(&matrix, row, output);
}

static void normalize(const Kernels *kernels) {
  const size_t size = 1 + below(300), tokens = 1 + below(9);
  float *input = get_activations(tokens, size), *gain = get_floats(size);
  float *skip = below(2) ? get_activations(tokens, size) : NULL;
  float *bias = below(2) ? get_floats(size) : NULL;
  float *sum = below(2) ? get_floats(tokens * size) : NULL;
  float *output = get_floats(tokens * size);
  kernels->rms_norm(input, skip, bias, gain, 1e-5f, output, sum, tokens, size);
}

static void gate(const Kernels *kernels) {
  const size_t size = 1 + below(300), tokens = 1 + below(5);
  float *input = get_activations(tokens, 2 * size), *output = get_floats(tokens * size);
  kernels->gated_activation(input, below(2), 1.702f, below(2) ? 0 : 0.044715f, output, tokens, size);
}

static void transform(const Kernels *kernels) {
  const size_t size = (size_t)1 << below(9), count = 1 + below(5);
  float *input = get_activations(count, size), *output = get_floats(count * size);
  kernels->hadamard(input, output, count, size, 0.5f);
}

static void multiply_add(const Kernels *kernels) {
  const size_t tokens = 1 + below(20), inner = 1 + below(60), columns = 1 + below(300);
  const size_t cut = below(columns), count = tokens * columns;
  const float *left = get_activations(tokens, inner), *right = get_activations(inner, columns);
  const float *start = below(2) ? get_activations(tokens, columns) : NULL;
  float *output = get_floats(count), *other = get_floats(count);
  kernels->multiply_add(left, right, start, output, tokens, inner, columns, 0, columns);
  kernels->multiply_add(left, right, start, other, tokens, inner, columns, 0, cut);
  kernels->multiply_add(left, right, start, other, tokens, inner, columns, cut, columns);
  require_equal(output, other, count, "multiply_add");
}

// One side of the cache, before tokens are appended.
static void *get_cache(const Attention *a, size_t capacity) {
  const size_t count = a->batch * a->kv_heads * capacity * a->head_size;
  return a->key_scale ? (void *)get_bytes(count) : (void *)get_floats(count);
}

static void add_scales(Attention *a) {
  a->is_scaled_by_channel = below(2);
  const size_t count = a->is_scaled_by_channel ? a->kv_heads * a->head_size : 1;
  a->key_scale = get_floats(count);
  a->value_scale = get_floats(count);
}

static void add_rotation(Attention *a, size_t positions) {
  a->rotary_size = 16 * (1 + below(a->head_size / 16));
  a->is_interleaved = below(2);
  a->cosines = get_floats(positions * a->rotary_size / 2);
  a->sines = get_floats(positions * a->rotary_size / 2);
  if (a->is_first || below(2)) return;
  int64_t *ids = get(a->batch * a->tokens * sizeof *ids, sizeof *ids);
  for (size_t i = 0; i < a->batch * a->tokens; i++) ids[i] = (int64_t)below(positions);
  a->positions = ids;
}

// Lengths of the batch items, and the caches: none, in place, or copied.
static void add_caches(Attention *a, size_t past) {
  int32_t *last = get(a->batch * sizeof *last, sizeof *last);
  for (size_t b = 0; b < a->batch; b++)
    last[b] = (int32_t)(a->is_first ? below(a->tokens) : below(past + 1) + a->tokens - 1);
  a->last_positions = last;
  a->past_capacity = past + below(3);
  a->capacity = past + a->tokens + below(10);
  const bool in_place = below(2);
  if (in_place) a->past_capacity = a->capacity;
  a->present_keys = get_cache(a, a->capacity);
  a->present_values = get_cache(a, a->capacity);
  if (a->is_first && !in_place && below(2)) return;
  a->past_keys = in_place ? a->present_keys : get_cache(a, a->past_capacity);
  a->past_values = in_place ? a->present_values : get_cache(a, a->past_capacity);
}

static void attend(const Kernels *kernels) {
  static const size_t prompts[] = {1, 2, 5, 17, 40, 90}, pasts[] = {0, 1, 15, 64, 200, 700};
  Attention a = {.batch = 1 + below(3), .kv_heads = 1 + below(3), .head_size = 8 * (1 + below(18))};
  const size_t past = below(2) ? 0 : pasts[below(sizeof pasts / sizeof *pasts)];
  a.tokens = below(2) ? 1 : prompts[below(sizeof prompts / sizeof *prompts)];
  a.new_tokens = a.tokens;
  a.heads = a.kv_heads * (1 + below(8));
  a.is_first = !past;
  a.is_causal = below(4);
  a.window = a.is_causal && !below(3) ? 1 + below(past + a.tokens) : 0;
  a.scale = 0.1f;
  a.softcap = below(4) ? 0 : 15;
  a.has_sink = below(2);
  if (a.has_sink && below(2)) a.sinks = get_floats(a.heads);
  a.query_stride = a.heads * a.head_size;
  a.key_stride = a.kv_heads * a.head_size;
  a.query = get_activations(a.batch * a.tokens, a.query_stride);
  a.key = get_activations(a.batch * a.tokens, a.key_stride);
  a.value = get_activations(a.batch * a.tokens, a.key_stride);
  if (below(2)) add_scales(&a);
  if (a.head_size % 16 == 0 && below(2)) add_rotation(&a, past + a.tokens);
  add_caches(&a, past);
  const size_t count = a.batch * a.tokens * a.query_stride;
  float *output = a.output = get_floats(count), *other = get_floats(count);
  void *scratch = get(kernels->attend_bytes(&a), 64);
  kernels->attend(&a, scratch, &alone);
  a.output = other;
  kernels->attend(&a, scratch, &threaded);
  require_equal(output, other, count, "attend");
}

// Tasks one after the other: each adds what all indices of the one before have left.
typedef struct {
  size_t values[2][40], count;
  int turn;
} Relay;

static void hand_on(void *state, size_t index) {
  Relay *relay = state;
  size_t total = index;
  for (size_t i = 0; i < relay->count; i++) total += relay->values[relay->turn][i];
  relay->values[1 - relay->turn][index] = total % 1000;
}

static void run_relay(void *state, const Parallel *parallel) {
  Relay *relay = state;
  for (size_t round = 0; round < 100; round++, relay->turn = 1 - relay->turn)
    parallel->run(parallel->context, hand_on, relay, relay->count);
}

static void work_as_team(const Kernels *kernels) {
  Relay relay = {.count = 1 + below(40)}, other = relay;
  (void)kernels;
  run_relay(&relay, &alone);
  run_as_team(&threaded, run_relay, &other);
  if (memcmp(&relay, &other, sizeof relay)) {
    fprintf(stderr, "team: a task ran before the one ahead of it had ended\n");
    exit(1);
  }
}

static void *select_set(void *result) {
  *(const Kernels **)result = select_kernels();
  return NULL;
}

int main(int count, char **arguments) {
  if (count != 3) return 2;
  pthread_t threads[THREADS];
  const Kernels *kernels[THREADS];
  for (size_t i = 0; i < THREADS; i++)
    if (pthread_create(&threads[i], NULL, select_set, &kernels[i])) abort();
  for (size_t i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  seed = strtoull(arguments[1], NULL, 10) * 2 + 1;
  const size_t rounds = strtoull(arguments[2], NULL, 10);
  for (size_t i = 0; i < rounds; i++, release_all()) {
    guarded = i % 2;
    multiply(kernels[0]);
    dequantize(kernels[0]);
    normalize(kernels[0]);
    gate(kernels[0]);
    transform(kernels[0]);
    multiply_add(kernels[0]);
    attend(kernels[0]);
    work_as_team(kernels[0]);
  }
  printf("%s\n", kernels[0]->name);
  return 0;
}
