#define _GNU_SOURCE
#include "model.h"

#include <ctype.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "app.h"
#include "plugin.h"
#include "tokenizer.h"

enum { CACHES = sizeof APP_CACHE / sizeof *APP_CACHE, STOPS = sizeof APP_STOP / sizeof *APP_STOP };

struct Model {
  Tokenizer *tokenizer;
  OrtEnv *env;
  OrtSession *session;
  OrtMemoryInfo *cpu;
  OrtRunOptions *after_prompt; /* shrinks the arena: a prompt needs more memory than a step */
  void *file;                  /* an .ort file, mapped */
  size_t bytes;
  int in_file;                 /* products read the weights in the file, which are not packed */
  char provider[300];
};

static const OrtApi *ort;
static _Thread_local char problem[512];

const char *model_problem(void) { return problem; }

const char *model_provider(const Model *model) { return model->provider; }

static int fail(const char *what, const char *why) {
  snprintf(problem, sizeof problem, "%.300s%.200s", what, why);
  return 1;
}

static int failed(OrtStatus *status) {
  if (!status) return 0;
  fail("", ort->GetErrorMessage(status));
  ort->ReleaseStatus(status);
  return 1;
}

#define TRY(call)                 \
  do {                            \
    if (failed(ort->call)) goto done; \
  } while (0)

/* Releases pages that only the start needed: those of the weights' file, which ONNX Runtime has
   packed into its own memory, and optionally those of its code. The kernel reads a page again if it
   is needed again. */
static void release_pages(const Model *model, int code_too) {
#ifdef __linux__
  char line[4096];
  FILE *maps = fopen("/proc/self/maps", "r");
  while (maps && fgets(line, sizeof line, maps)) {
    unsigned long start, end, offset;
    char mode[5] = "";
    if (sscanf(line, "%lx-%lx %4s %lx", &start, &end, mode, &offset) != 4) continue;
    int weights = APP_PACKED && !model->in_file && strstr(line, APP_WEIGHTS) != NULL;
    int code = code_too && (mode[2] == 'x' || !offset) && strstr(line, "libonnxruntime") != NULL;
    if (weights || code) madvise((void *)start, end - start, MADV_DONTNEED);
  }
  if (maps) fclose(maps);
#ifdef __GLIBC__
  if (code_too) malloc_trim(0);
#endif
#else
  (void)model, (void)code_too;
#endif
}

static void *allocate(size_t bytes) { /* zeroed; a page is resident once it is written */
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? NULL : memory;
}

static int map_file(Model *model, const char *path) {
  struct stat about;
  int file = open(path, O_RDONLY);
  if (file < 0 || fstat(file, &about)) return fail(path, ": cannot be read");
  model->bytes = (size_t)about.st_size;
  model->file = mmap(NULL, model->bytes, PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  if (model->file != MAP_FAILED) return 0;
  model->file = NULL;
  return fail(path, ": cannot be mapped");
}

static void describe_provider(Model *model, int has_plugin, const char *why) {
  size_t own = 0, all = 0, size = sizeof model->provider;
  if (has_plugin) plugin_nodes(ort, model->session, &own, &all);
  if (all) snprintf(model->provider, size, "edgetie (%zu of %zu nodes)", own, all);
  else if (has_plugin) snprintf(model->provider, size, "edgetie");
  else snprintf(model->provider, size, "cpu: %s", why);
}

static int start_session(Model *model, const char *path) {
  OrtSessionOptions *options = NULL;
  char why[sizeof model->provider - 8];
  int started = 0;
  TRY(CreateEnv(ORT_LOGGING_LEVEL_FATAL, "app", &model->env));
  TRY(CreateSessionOptions(&options));
  TRY(DisableMemPattern(options));
  TRY(AddSessionConfigEntry(options, "session.intra_op.spin_duration_us", "50"));
  /* exact sums of uint8 times int8 also on x86 processors without VNNI */
  TRY(AddSessionConfigEntry(options, "session.x64quantprecision", "1"));
  int has_plugin = plugin_add(ort, model->env, options, why, sizeof why);
  model->in_file = has_plugin && APP_IN_FILE;
  if (!APP_OPTIMIZE || model->in_file) TRY(SetSessionGraphOptimizationLevel(options, ORT_DISABLE_ALL));
  if (APP_ORT_FORMAT) { /* weights stay in the mapped file, as they do with .onnx */
    if (map_file(model, path)) goto done;
    TRY(AddSessionConfigEntry(options, "session.use_ort_model_bytes_directly", "1"));
    TRY(AddSessionConfigEntry(options, "session.use_ort_model_bytes_for_initializers", "1"));
    TRY(CreateSessionFromArray(model->env, model->file, model->bytes, options, &model->session));
  } else {
    TRY(CreateSession(model->env, path, options, &model->session));
  }
  TRY(CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &model->cpu));
  TRY(CreateRunOptions(&model->after_prompt));
  TRY(AddRunConfigEntry(model->after_prompt, "memory.enable_memory_arena_shrinkage", "cpu:0"));
  describe_provider(model, has_plugin, why);
  release_pages(model, 1);
  started = 1;
done:
  if (options) ort->ReleaseSessionOptions(options);
  return started;
}

Model *model_open(const char *folder) {
  char path[4096];
  Model *model = calloc(1, sizeof *model);
  if (!model) return fail("not enough memory", ""), NULL;
  ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  snprintf(path, sizeof path, "%s/model/tokenizer.bin", folder);
  if (!ort) {
    fail("this ONNX Runtime is older than the headers it was built with", "");
  } else if (!(model->tokenizer = tokenizer_open(path))) {
    fail(path, ": cannot be read");
  } else {
    snprintf(path, sizeof path, "%s/" APP_MODEL, folder);
    if (start_session(model, path)) return model;
  }
  model_close(model);
  return NULL;
}

void model_close(Model *model) {
  if (!model) return;
  if (model->after_prompt) ort->ReleaseRunOptions(model->after_prompt);
  if (model->cpu) ort->ReleaseMemoryInfo(model->cpu);
  if (model->session) ort->ReleaseSession(model->session);
  if (model->env) ort->ReleaseEnv(model->env);
  if (model->file) munmap(model->file, model->bytes);
  if (model->tokenizer) tokenizer_close(model->tokenizer);
  free(model);
}

static int64_t *prompt_tokens(const Model *model, const char *prompt, size_t *count) {
  size_t length = strlen(APP_BEFORE) + strlen(prompt) + strlen(APP_AFTER) + 1;
  char *text = malloc(length);
  if (!text) return NULL;
  const char *end = prompt + strlen(prompt);
  while (APP_TRIM && isspace((unsigned char)*prompt)) prompt++;
  while (APP_TRIM && end > prompt && isspace((unsigned char)end[-1])) end--;
  snprintf(text, length, "%s%.*s%s", APP_BEFORE, (int)(end - prompt), prompt, APP_AFTER);
  int64_t *ids = tokenizer_encode(model->tokenizer, text, count);
  free(text);
  size_t front = APP_PREFIX_TOKENS, back = APP_SUFFIX_TOKENS, all = front + *count + back;
  int64_t *whole = ids ? malloc((all + 1) * sizeof *whole) : NULL;
  if (whole) {
    for (size_t i = 0; i < front; i++) whole[i] = APP_PREFIX[i];
    memcpy(whole + front, ids, *count * sizeof *ids);
    for (size_t i = 0; i < back; i++) whole[front + *count + i] = APP_SUFFIX[i];
    *count = all;
  }
  free(ids);
  return whole;
}

enum { INT64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, FLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT };

/* Binds memory as the input or output of that name. */
static int bind(const Model *model, OrtIoBinding *binding, int output, const char *name, void *data,
                size_t size, const int64_t *shape, size_t rank, int type) {
  OrtValue *value = NULL;
  size_t bytes = size;
  for (size_t i = 0; i < rank; i++) bytes *= (size_t)shape[i];
  if (failed(ort->CreateTensorWithDataAsOrtValue(model->cpu, data, bytes, shape, rank,
                                                 (ONNXTensorElementDataType)type, &value)))
    return 1;
  int bad = failed(output ? ort->BindOutput(binding, name, value)
                          : ort->BindInput(binding, name, value));
  ort->ReleaseValue(value);
  return bad;
}

/* Past and present share one buffer of the full length: a step appends one token to it. */
static int bind_caches(const Model *model, OrtIoBinding *binding, char *caches, int64_t longest) {
  const int64_t shape[4] = {1, APP_CACHE_HEADS, longest, APP_CACHE_SIZE};
  size_t bytes = (size_t)(APP_CACHE_HEADS * longest * APP_CACHE_SIZE * APP_CACHE_BYTES);
  for (int i = 0; i < CACHES; i++) {
    char past[256], present[256];
    snprintf(past, sizeof past, "past_key_values.%s", APP_CACHE[i]);
    snprintf(present, sizeof present, "present.%s", APP_CACHE[i]);
    void *data = caches + (size_t)i * bytes;
    if (bind(model, binding, 0, past, data, APP_CACHE_BYTES, shape, 4, APP_CACHE_TYPE) ||
        bind(model, binding, 1, present, data, APP_CACHE_BYTES, shape, 4, APP_CACHE_TYPE))
      return 1;
  }
  return 0;
}

int model_answer(Model *model, const char *prompt, long most, Piece piece, void *user) {
  int answered = 0;
  size_t read = 0;
  char *memory = NULL;
  OrtIoBinding *binding = NULL;
  int64_t *ids = prompt_tokens(model, prompt, &read);
  if (!ids || !read) {
    fail("the prompt has no tokens, or there is not enough memory", "");
    free(ids);
    return 0;
  }
  if (APP_MAX_POSITIONS && read > APP_MAX_POSITIONS) {
    char why[100];
    snprintf(why, sizeof why, "%zu tokens, the model takes %d", read, APP_MAX_POSITIONS);
    fail("the prompt has ", why);
    free(ids);
    return 0;
  }
  size_t longest = read + (size_t)(most > 0 ? most : 0);
  if (APP_MAX_POSITIONS && longest > APP_MAX_POSITIONS) longest = APP_MAX_POSITIONS;
  size_t logits_tokens = APP_LOGITS_OF_ALL ? read : 1;
  size_t caches = CACHES * APP_CACHE_HEADS * longest * APP_CACHE_SIZE * APP_CACHE_BYTES;
  size_t token_bytes = APP_VOCABULARY * sizeof(float);
  size_t total = 2 * longest * sizeof(int64_t) + logits_tokens * token_bytes + caches;
  if (!(memory = allocate(total))) {
    fail("not enough memory for so long a text", "");
    goto done;
  }
  int64_t *mask = (int64_t *)memory, *positions = mask + longest;
  float *logits = (float *)(positions + longest);
  char *cache = (char *)logits + logits_tokens * token_bytes;
  for (size_t i = 0; i < longest; i++) mask[i] = 1, positions[i] = (int64_t)i;
  TRY(CreateIoBinding(model->session, &binding));
  if (bind_caches(model, binding, cache, (int64_t)longest)) goto done;

  int64_t token = 0, *next = ids;
  size_t seen = 0, fresh = read;
  for (long count = 0; count < most && seen + fresh <= longest; count++) {
    const int64_t step[2] = {1, (int64_t)fresh}, whole[2] = {1, (int64_t)(seen + fresh)};
    const int64_t out[3] = {1, APP_LOGITS_OF_ALL ? (int64_t)fresh : 1, APP_VOCABULARY};
    const struct { const char *name; int64_t *data; const int64_t *shape; } inputs[] = {
        {"input_ids", next, step},
        {"attention_mask", mask, whole},
        {"position_ids", positions + seen, step}};
    for (int i = 0; i < 3; i++)
      if (strstr(" " APP_INPUTS " ", inputs[i].name) &&
          bind(model, binding, 0, inputs[i].name, inputs[i].data, sizeof token, inputs[i].shape, 2, INT64))
        goto done;
    if (bind(model, binding, 1, "logits", logits, sizeof *logits, out, 3, FLOAT)) goto done;
    TRY(RunWithBinding(model->session, count ? NULL : model->after_prompt, binding));
    if (count % 2) release_pages(model, count == 1); /* the kernel reads 64 KB around each embedding */

    const float *last = logits + (out[1] - 1) * APP_VOCABULARY;
    token = 0;
    for (int64_t i = 1; i < APP_VOCABULARY; i++)
      if (last[i] > last[token]) token = i;
    int ends = 0;
    for (int i = 0; i < STOPS; i++) ends |= token == APP_STOP[i];
    size_t length;
    const char *text = tokenizer_text(model->tokenizer, token, &length);
    if (!piece(user, text, length, token, ends)) break;
    seen += fresh, fresh = 1, next = &token;
  }
  answered = 1;
done:
  if (binding) ort->ReleaseIoBinding(binding);
  if (memory) munmap(memory, total);
  free(ids);
  return answered;
}
