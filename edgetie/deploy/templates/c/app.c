/* Answers a prompt: ./app "What is the capital of France?" [most tokens] [--tokens] */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "app.h"
#include "onnxruntime_c_api.h"
#include "tokenizer.h"

enum { CACHES = sizeof APP_CACHE / sizeof *APP_CACHE, STOPS = sizeof APP_STOP / sizeof *APP_STOP };

static const OrtApi *ort;

static void check(OrtStatus *status) {
  if (!status) return;
  fprintf(stderr, "app: %s\n", ort->GetErrorMessage(status));
  exit(1);
}

/* Lets go of pages that only the start needed: of the weights' file, which ONNX Runtime has packed
   into memory of its own, and, if asked, of its code. What is needed again is read again. */
static void release_pages(int code_too) {
#ifdef __linux__
  char line[4096];
  FILE *maps = fopen("/proc/self/maps", "r");
  while (maps && fgets(line, sizeof line, maps)) {
    unsigned long start, end, offset;
    char mode[5] = "";
    if (sscanf(line, "%lx-%lx %4s %lx", &start, &end, mode, &offset) != 4) continue;
    int weights = APP_PACKED && strstr(line, APP_MODEL ".data") != NULL;
    int code = code_too && (mode[2] == 'x' || !offset) && strstr(line, "libonnxruntime") != NULL;
    if (weights || code) madvise((void *)start, end - start, MADV_DONTNEED);
  }
  if (maps) fclose(maps);
#ifdef __GLIBC__
  if (code_too) malloc_trim(0);
#endif
#else
  (void)code_too;
#endif
}

static void *room(size_t bytes) { /* zeroed; its pages come into being as they are written */
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory != MAP_FAILED) return memory;
  fprintf(stderr, "app: not enough memory\n");
  exit(1);
}

static OrtValue *tensor(const OrtMemoryInfo *cpu, void *data, size_t bytes, const int64_t *shape,
                        size_t rank, ONNXTensorElementDataType type) {
  OrtValue *value;
  check(ort->CreateTensorWithDataAsOrtValue(cpu, data, bytes, shape, rank, type, &value));
  return value;
}

int main(int count, char **words) {
  const char *prompt = count > 1 ? words[1] : "What is the capital of France?";
  long most = count > 2 ? atol(words[2]) : 128;
  int ids_only = count > 3 && !strcmp(words[3], "--tokens");

  Tokenizer *tokenizer = tokenizer_open("model/tokenizer.bin");
  if (!tokenizer) {
    fprintf(stderr, "app: model/tokenizer.bin cannot be read; start it in its own folder\n");
    return 1;
  }
  size_t length = strlen(APP_BEFORE) + strlen(prompt) + strlen(APP_AFTER) + 1, read;
  char *text = malloc(length);
  if (!text) return 1;
  snprintf(text, length, "%s%s%s", APP_BEFORE, prompt, APP_AFTER);
  int64_t *ids = tokenizer_encode(tokenizer, text, &read);
  if (!ids || !read) return 1;
  size_t longest = read + (size_t)(most > 0 ? most : 0);

  ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (!ort) {
    fprintf(stderr, "app: this ONNX Runtime is older than the headers it was built with\n");
    return 1;
  }
  OrtEnv *env;
  OrtSessionOptions *options;
  OrtSession *session;
  OrtMemoryInfo *cpu;
  OrtIoBinding *binding;
  OrtRunOptions *after_prompt; /* a prompt needs more memory than a step: it is given back */
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "app", &env));
  check(ort->CreateSessionOptions(&options));
  check(ort->DisableMemPattern(options));
  check(ort->AddSessionConfigEntry(options, "session.intra_op.spin_duration_us", "50"));
  if (!APP_OPTIMIZE) check(ort->SetSessionGraphOptimizationLevel(options, ORT_DISABLE_ALL));
  check(ort->CreateSession(env, APP_MODEL, options, &session));
  check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &cpu));
  check(ort->CreateIoBinding(session, &binding));
  check(ort->CreateRunOptions(&after_prompt));
  check(ort->AddRunConfigEntry(after_prompt, "memory.enable_memory_arena_shrinkage", "cpu:0"));
  release_pages(1);

  /* past and present are one buffer of the full length: a step writes one row into it */
  int64_t shape[4] = {1, APP_CACHE_HEADS, (int64_t)longest, APP_CACHE_SIZE};
  size_t bytes = APP_CACHE_HEADS * longest * APP_CACHE_SIZE * APP_CACHE_BYTES;
  for (int i = 0; i < CACHES; i++) {
    char name[256];
    OrtValue *cache = tensor(cpu, room(bytes), bytes, shape, 4, APP_CACHE_TYPE);
    snprintf(name, sizeof name, "past_key_values.%s", APP_CACHE[i]);
    check(ort->BindInput(binding, name, cache));
    snprintf(name, sizeof name, "present.%s", APP_CACHE[i]);
    check(ort->BindOutput(binding, name, cache));
    ort->ReleaseValue(cache);
  }
  size_t kept = APP_LOGITS_OF_ALL ? read : 1;
  float *logits = room(kept * APP_VOCABULARY * sizeof *logits);
  int64_t *mask = room(longest * sizeof *mask), *places = room(longest * sizeof *places);
  for (size_t i = 0; i < longest; i++) mask[i] = 1, places[i] = (int64_t)i;

  int64_t token = 0, *next = ids;
  size_t seen = 0, fresh = read;
  for (long made = 0; made < most; made++) {
    int64_t step[2] = {1, (int64_t)fresh}, whole[2] = {1, (int64_t)(seen + fresh)};
    int64_t out[3] = {1, APP_LOGITS_OF_ALL ? (int64_t)fresh : 1, APP_VOCABULARY};
    const ONNXTensorElementDataType int64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    OrtValue *values[] = {
        tensor(cpu, next, fresh * sizeof *ids, step, 2, int64),
        tensor(cpu, mask, (seen + fresh) * sizeof *mask, whole, 2, int64),
        tensor(cpu, places + seen, fresh * sizeof *places, step, 2, int64),
        tensor(cpu, logits, (size_t)(out[1] * out[2]) * sizeof *logits, out, 3,
               ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
    };
    static const char *const names[] = {"input_ids", "attention_mask", "position_ids"};
    for (int i = 0; i < 3; i++)
      if (strstr(" " APP_INPUTS " ", names[i])) check(ort->BindInput(binding, names[i], values[i]));
    check(ort->BindOutput(binding, "logits", values[3]));
    check(ort->RunWithBinding(session, made ? NULL : after_prompt, binding));
    for (int i = 0; i < 4; i++) ort->ReleaseValue(values[i]);
    if (made % 2) release_pages(made == 1); /* a row looked up brings its neighbours */

    const float *last = logits + (out[1] - 1) * APP_VOCABULARY;
    token = 0;
    for (int64_t i = 1; i < APP_VOCABULARY; i++)
      if (last[i] > last[token]) token = i;
    if (ids_only) {
      printf("%" PRId64 "\n", token);
    } else {
      const char *piece = tokenizer_text(tokenizer, token, &length);
      fwrite(piece, 1, length, stdout);
    }
    fflush(stdout);
    int stop = 0;
    for (int i = 0; i < STOPS; i++) stop |= token == APP_STOP[i];
    if (stop && !ids_only) break;
    seen += fresh, fresh = 1, next = &token;
  }
  if (!ids_only) putchar('\n');
  if (getenv("APP_MEMORY")) { /* what the process holds now, kB */
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status))
      if (!strncmp(line, "Vm", 2) || !strncmp(line, "Rss", 3)) fputs(line, stderr);
    if (status) fclose(status);
  }

  ort->ReleaseRunOptions(after_prompt);
  ort->ReleaseIoBinding(binding);
  ort->ReleaseMemoryInfo(cpu);
  ort->ReleaseSession(session);
  ort->ReleaseSessionOptions(options);
  ort->ReleaseEnv(env);
  tokenizer_close(tokenizer);
  free(ids), free(text);
  return 0;
}
