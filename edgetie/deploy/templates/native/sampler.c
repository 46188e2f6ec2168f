#include "sampler.h"

#include <math.h>
#include <stdlib.h>
#include <time.h>

struct Sampler {
  Options options;
  uint64_t state;
  size_t vocabulary;
  unsigned char *seen; /* whether each token occurred */
  double *weights;     /* of each token, the most likely one's is 1 */
  int32_t *heap;       /* tokens by weight; behind its end those that were the most likely */
};

/* A number from 0 up to 1, of Knuth's linear congruential generator MMIX. */
static double next_random(Sampler *s) {
  s->state = s->state * 6364136223846793005u + 1442695040888963407u;
  return (double)(s->state >> 11) / 9007199254740992.0;
}

Sampler *sampler_open(const Options *options, size_t vocabulary, const char **problem) {
  *problem = !(options->temperature >= 0)                        ? "temperature must be 0 or more"
             : options->top_k < 0                                ? "top_k must be 0 or more"
             : !(options->top_p > 0 && options->top_p <= 1)      ? "top_p must be above 0 and at most 1"
             : !(options->repetition_penalty > 0)                ? "repetition_penalty must be above 0"
                                                                 : NULL;
  Sampler *s = *problem ? NULL : calloc(1, sizeof *s);
  if (!s) return NULL;
  s->options = *options;
  s->vocabulary = vocabulary;
  s->state = (uint64_t)options->seed;
  if (options->seed < 0) s->state = (uint64_t)time(NULL) * 1000003u + (uint64_t)clock();
  next_random(s); /* the first numbers of neighbouring seeds are alike */
  s->seen = calloc(vocabulary, 1);
  if (options->temperature > 0) {
    s->weights = malloc(vocabulary * sizeof *s->weights);
    s->heap = malloc(vocabulary * sizeof *s->heap);
  }
  if (s->seen && (options->temperature == 0 || (s->weights && s->heap))) return s;
  *problem = "not enough memory";
  sampler_close(s);
  return NULL;
}

void sampler_close(Sampler *s) {
  if (!s) return;
  free(s->seen), free(s->weights), free(s->heap), free(s);
}

void sampler_see(Sampler *s, int64_t token) {
  if (token >= 0 && (size_t)token < s->vocabulary) s->seen[token] = 1;
}

static void sink(Sampler *s, size_t at, size_t count) {
  for (size_t child; (child = 2 * at + 1) < count; at = child) {
    int32_t token = s->heap[at];
    if (child + 1 < count && s->weights[s->heap[child + 1]] > s->weights[s->heap[child]]) child++;
    if (s->weights[token] >= s->weights[s->heap[child]]) return;
    s->heap[at] = s->heap[child], s->heap[child] = token;
  }
}

/* Moves the most likely of the first count tokens behind the others; returns its weight. */
static double pop(Sampler *s, size_t count) {
  int32_t token = s->heap[0];
  s->heap[0] = s->heap[count - 1], s->heap[count - 1] = token;
  sink(s, 0, count - 1);
  return s->weights[token];
}

static int64_t draw(Sampler *s, const float *logits, float highest) {
  const Options *o = &s->options;
  size_t all = s->vocabulary, kept = 0;
  int limited = o->top_k > 0 && (size_t)o->top_k < all, ordered = limited || o->top_p < 1;
  size_t limit = limited ? (size_t)o->top_k : all;
  double whole = 0, sum = 0;
  for (size_t i = 0; i < all; i++) {
    whole += s->weights[i] = exp(((double)logits[i] - highest) / o->temperature);
    s->heap[ordered ? i : all - 1 - i] = (int32_t)i;
  }
  for (size_t at = ordered ? all / 2 : 0; at-- > 0;) sink(s, at, all);
  if (limited) whole = 0;
  for (size_t i = 0; limited && i < limit; i++) whole += pop(s, all - i);
  while (kept < limit && (!kept || sum < o->top_p * whole)) {
    if (ordered && !limited) pop(s, all - kept);
    sum += s->weights[s->heap[all - ++kept]];
  }
  double left = next_random(s) * sum;
  size_t place = 1;
  while (place < kept && (left -= s->weights[s->heap[all - place]]) >= 0) place++;
  return s->heap[all - place];
}

int64_t sampler_select(Sampler *s, float *logits) {
  double penalty = s->options.repetition_penalty;
  for (size_t i = 0; penalty != 1 && i < s->vocabulary; i++)
    if (s->seen[i]) logits[i] = (float)(logits[i] * (logits[i] > 0 ? 1 / penalty : penalty));
  size_t best = 0;
  for (size_t i = 1; i < s->vocabulary; i++)
    if (logits[i] > logits[best]) best = i;
  return s->options.temperature == 0 ? (int64_t)best : draw(s, logits, logits[best]);
}
