// Time the kernels against the machine: what it reads per second and what it multiplies per second.
//
// Usage: kernels THREADS. Prints one JSON object a line.

#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels.h"

enum { BUFFER = 256 << 20, ROUNDS = 7, MOST_THREADS = 64 };

// Threads that wait actively for the next call, as the session's threads do.
static struct {
  void (*task)(void *, size_t);
  void *state;
  size_t count;
  atomic_size_t next;
  atomic_int call, waiting;
  int threads;
} pool;

static void work(void) {
  for (size_t i; (i = atomic_fetch_add(&pool.next, 1)) < pool.count;) pool.task(pool.state, i);
}

static void *wait_for_work(void *none) {
  (void)none;
  for (int done = 0;;) {
    while (atomic_load(&pool.call) == done) continue;
    done = atomic_load(&pool.call);
    if (done < 0) return NULL;
    work();
    atomic_fetch_add(&pool.waiting, 1);
  }
}

static void run(void *none, void (*task)(void *, size_t), void *state, size_t count) {
  (void)none;
  pool.task = task, pool.state = state, pool.count = count;
  atomic_store(&pool.next, 0);
  atomic_store(&pool.waiting, 0);
  atomic_fetch_add(&pool.call, 1);
  work();
  while (atomic_load(&pool.waiting) < pool.threads - 1) continue;
}

static const Parallel parallel = {NULL, run};

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(double *values) {
  qsort(values, ROUNDS, sizeof *values, ascending);
  return values[ROUNDS / 2];
}

typedef float Vector __attribute__((vector_size(64)));
typedef uint64_t Words __attribute__((vector_size(64)));

static uint8_t *buffer;
static volatile uint64_t read_sum;
static volatile float product;

// Each task reads 1 MB with prefetches, the fastest way that was found.
static void read_task(void *none, size_t index) {
  (void)none;
  const uint8_t *p = buffer + (index << 20);
  Words sums[4] = {{0}};
  for (size_t i = 0; i < 1 << 20; i += 256)
    for (size_t j = 0; j < 4; j++) {
      __builtin_prefetch(p + i + 64 * j + 2048, 0, 0);
      sums[j] += *(const Words *)(p + i + 64 * j);
    }
  read_sum += (sums[0] + sums[1] + sums[2] + sums[3])[0];
}

static void multiply_task(void *none, size_t index) {
  (void)none;
  Vector a = {0}, b = {0}, c = {0}, d = {0}, e = {0}, f = {0}, g = {0}, h = {0};
  const Vector x = a + 0.5f, y = a + (float)(index + 1);
  for (int i = 0; i < 200000; i++) {
    a = a * x + y, b = b * x + y, c = c * x + y, d = d * x + y;
    e = e * x + y, f = f * x + y, g = g * x + y, h = h * x + y;
  }
  product = (a + b + c + d + e + f + g + h)[0];
}

static void print_matrix(const char *name, size_t rows, size_t columns, int bits, size_t tokens,
                         const Kernels *kernels) {
  const size_t block = bits == 8 ? 64 : 32, blocks = (columns + block - 1) / block;
  const size_t bytes = rows * blocks * block * (size_t)bits / 8, copies = BUFFER / bytes;
  QuantizedMatrix matrix = {.rows = rows, .columns = columns, .block_size = block,
                            .blocks = blocks, .bits = bits};
  float *scales = malloc(copies * rows * blocks * sizeof *scales);
  float *input = malloc(tokens * columns * sizeof *input);
  float *output = malloc(tokens * rows * sizeof *output);
  void *scratch = aligned_alloc(64, (kernels->scratch_bytes(&matrix, tokens) / 64 + 1) * 64);
  for (size_t i = 0; i < copies * rows * blocks; i++) scales[i] = 0.01f;
  for (size_t i = 0; i < tokens * columns; i++) input[i] = (float)(i * 7919 % 1000) / 500 - 1;
  double seconds[ROUNDS], reading[ROUNDS];
  const size_t times = tokens > 8 ? 2 : copies;  // matrices in turn, so that no cache holds them
  for (int round = 0; round < ROUNDS; round++) {
    double start = now();
    for (size_t i = 0; i < times; i++) {
      matrix.values = buffer + i % copies * bytes;
      matrix.scales = scales + i % copies * rows * blocks;
      kernels->multiply(&matrix, input, NULL, output, tokens, scratch, &parallel);
    }
    seconds[round] = (now() - start) / (double)times;
    start = now();
    run(NULL, read_task, NULL, BUFFER >> 20);
    reading[round] = BUFFER / (now() - start);
  }
  const double time = median(seconds);
  const double read = (double)(bytes + rows * blocks * sizeof *scales) / time;
  printf("{\"kernel\": \"%s\", \"set\": \"%s\", \"bits\": %d, \"rows\": %zu, \"columns\": %zu, "
         "\"tokens\": %zu, \"microseconds\": %.1f, \"gigabytes_per_second\": %.2f, "
         "\"of_bandwidth\": %.3f, \"gigamultiplications\": %.2f}\n",
         name, kernels->name, bits, rows, columns, tokens, time * 1e6, read / 1e9,
         read / median(reading), (double)(rows * columns * tokens) / time / 1e9);
  free(scales), free(input), free(output), free(scratch);
}

int main(int count, char **arguments) {
  pthread_t threads[MOST_THREADS];
  pool.threads = count > 1 ? atoi(arguments[1]) : 1;
  for (int i = 1; i < pool.threads; i++) pthread_create(&threads[i], NULL, wait_for_work, NULL);
  buffer = aligned_alloc(4096, BUFFER + 4096);
  for (size_t i = 0; i < BUFFER + 4096; i++) buffer[i] = (uint8_t)(i * 2654435761u >> 11);

  double reading[ROUNDS], multiplying[ROUNDS];
  for (int round = 0; round < ROUNDS; round++) {
    double start = now();
    run(NULL, read_task, NULL, BUFFER >> 20);
    reading[round] = BUFFER / (now() - start);
    start = now();
    run(NULL, multiply_task, NULL, (size_t)pool.threads);
    multiplying[round] = pool.threads * 200000.0 * 8 * 16 / (now() - start);
  }
  printf("{\"kernel\": \"machine\", \"gigabytes_per_second\": %.2f, \"gigamultiplications\": "
         "%.2f}\n", median(reading) / 1e9, median(multiplying) / 1e9);

  const Kernels *kernels = select_kernels();
  static const size_t tokens[] = {1, 2, 4, 8, 32, 128};
  for (int bits = 8; bits >= 4; bits -= 4)
    for (size_t t = 0; t < sizeof tokens / sizeof *tokens; t++) {
      if (tokens[t] <= 8) print_matrix("head", 49152, 576, bits, tokens[t], kernels);
      print_matrix("up", 3072, 576, bits, tokens[t], kernels);
      print_matrix("down", 576, 1536, bits, tokens[t], kernels);
    }
  atomic_store(&pool.call, -1);
  for (int i = 1; i < pool.threads; i++) pthread_join(threads[i], NULL);
  return 0;
}
