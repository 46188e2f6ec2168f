#define _GNU_SOURCE
#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "app.h"
#include "sampler.h"
#include "session.h"
#include "text.h"
#include "tokenizer.h"

enum { CACHES = sizeof APP_CACHE / sizeof *APP_CACHE, STOPS = sizeof APP_STOP / sizeof *APP_STOP };
enum { INT64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, FLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT };

typedef struct {
  Text prompt, answer;
} Turn;

struct Model {
  Session session;
  OrtIoBinding *binding;
  OrtRunOptions *after_prompt; /* shrinks the arena: a prompt needs more memory than a step */
  Tokenizer *tokenizer;
  Turn *turns;
  size_t turn_count;
  int64_t *ids;    /* tokens of the conversation, followed by a mask of ones and positions */
  char *caches;    /* keys and values of the first tokens */
  size_t cached;   /* how many */
  size_t room;     /* tokens that there is memory for */
  float *logits;
  size_t logits_tokens;
  Answer last;
};

const char *model_problem(void) { return session_problem(); }

const char *model_provider(const Model *model) { return model->session.provider; }

const Answer *model_last(const Model *model) { return &model->last; }

Options model_options(void) {
  return (Options){256, APP_TEMPERATURE, APP_TOP_K, APP_TOP_P, APP_REPETITION_PENALTY, -1, APP_STOP_STRINGS};
}

static void *allocate(size_t bytes) { /* zeroed; a page is resident once it is written */
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory != MAP_FAILED) return memory;
  session_fail("not enough memory for so long a text", "");
  return NULL;
}

#define TRY(call)                                      \
  do {                                                 \
    if (session_failed(session_api->call)) return 0;   \
  } while (0)

static int start(Model *model, const char *folder) {
  char path[4096];
  snprintf(path, sizeof path, "%s/model/tokenizer.bin", folder);
  if (!(model->tokenizer = tokenizer_open(path))) return session_fail(path, ": cannot be read"), 0;
  snprintf(path, sizeof path, "%s/" APP_MODEL, folder);
  if (!session_open(&model->session, path)) return 0;
  TRY(CreateIoBinding(model->session.session, &model->binding));
  TRY(CreateRunOptions(&model->after_prompt));
  TRY(AddRunConfigEntry(model->after_prompt, "memory.enable_memory_arena_shrinkage", "cpu:0"));
  return 1;
}

Model *model_open(const char *folder) {
  Model *model = calloc(1, sizeof *model);
  if (!model) return session_fail("not enough memory", ""), NULL;
  if (start(model, folder)) return model;
  model_close(model);
  return NULL;
}

static void forget(Model *model, size_t count) { /* the oldest turns */
  for (size_t i = 0; i < count; i++) free(model->turns[i].prompt.bytes), free(model->turns[i].answer.bytes);
  model->turn_count -= count;
  if (count) memmove(model->turns, model->turns + count, model->turn_count * sizeof *model->turns);
}

void model_reset(Model *model) { forget(model, model->turn_count); }

enum { CACHE_ROW = APP_CACHE_SIZE * APP_CACHE_BYTES, CACHE_HEADS = CACHES * APP_CACHE_HEADS };

static void release_memory(Model *model) {
  if (model->ids) munmap(model->ids, (3 * model->room + 1) * sizeof *model->ids);
  if (model->caches) munmap(model->caches, CACHE_HEADS * model->room * CACHE_ROW);
}

void model_close(Model *model) {
  if (!model) return;
  if (model->after_prompt) session_api->ReleaseRunOptions(model->after_prompt);
  if (model->binding) session_api->ReleaseIoBinding(model->binding);
  session_close(&model->session);
  if (model->tokenizer) tokenizer_close(model->tokenizer);
  model_reset(model);
  release_memory(model);
  free(model->turns), free(model->logits), free(model);
}

/* The tokens of the conversation as the chat template writes it, to be freed; NULL if that fails. */
static int64_t *encode(const Model *model, size_t *count) {
  Text text = {0};
  int written = text_add(&text, APP_BEFORE_PROMPT, strlen(APP_BEFORE_PROMPT));
  for (size_t i = 0; i < model->turn_count; i++) {
    const Text *prompt = &model->turns[i].prompt, *answer = &model->turns[i].answer;
    const char *after = i + 1 < model->turn_count ? APP_BEFORE_ANSWER : APP_AFTER_PROMPT;
    written &= text_add(&text, prompt->bytes, prompt->length) && text_add(&text, after, strlen(after));
    if (i + 1 < model->turn_count)
      written &= text_add(&text, answer->bytes, answer->length) &&
                 text_add(&text, APP_NEXT_PROMPT, strlen(APP_NEXT_PROMPT));
  }
  int64_t *ids = written ? tokenizer_encode(model->tokenizer, text.bytes, text.length, count) : NULL;
  free(text.bytes);
  size_t front = APP_PREFIX_TOKENS, back = APP_SUFFIX_TOKENS, all = front + *count + back;
  int64_t *whole = ids ? malloc((all + 1) * sizeof *whole) : NULL;
  if (whole) {
    for (size_t i = 0; i < front; i++) whole[i] = APP_PREFIX[i];
    memcpy(whole + front, ids, *count * sizeof *ids);
    for (size_t i = 0; i < back; i++) whole[front + *count + i] = APP_SUFFIX[i];
    *count = all;
  } else {
    session_fail("not enough memory", "");
  }
  free(ids);
  return whole;
}

/* Appends a turn; returns the tokens of the conversation, to be freed, or NULL if that fails. */
static int64_t *add_turn(Model *model, const char *prompt, size_t *count) {
  if (!APP_HISTORY) model_reset(model);
  Turn *turns = realloc(model->turns, (model->turn_count + 1) * sizeof *turns), turn = {0};
  if (turns) model->turns = turns;
  if (!turns || !text_add(&turn.prompt, prompt, strlen(prompt)) || !text_add(&turn.answer, "", 0))
    return session_fail("not enough memory", ""), free(turn.prompt.bytes), NULL;
  if (APP_TRIM_PROMPT) text_trim(&turn.prompt);
  model->turns[model->turn_count++] = turn;
  int64_t *ids = encode(model, count);
  while (ids && APP_MAX_POSITIONS && *count > APP_MAX_POSITIONS * 3 / 4 && model->turn_count > 1) {
    free(ids);
    forget(model, 1);
    ids = encode(model, count);
  }
  char why[100] = "the prompt has no tokens";
  int too_long = ids && APP_MAX_POSITIONS && *count > APP_MAX_POSITIONS;
  if (too_long)
    snprintf(why, sizeof why, "the prompt has %zu tokens, the model takes %d", *count, APP_MAX_POSITIONS);
  if (!ids || (*count && !too_long)) return ids;
  session_fail(why, "");
  model_reset(model); /* the prompt is the only turn */
  free(ids);
  return NULL;
}

static int bind(Model *model, int output, const char *name, void *data, size_t size, const int64_t *shape,
                size_t rank, int type) {
  return session_bind(&model->session, model->binding, output, name, data, size, shape, rank, type);
}

/* Makes room for that many tokens. Past and present share one buffer: a step appends to it. */
static int reserve(Model *model, size_t length) {
  if (length <= model->room) return 1;
  size_t room = length > 2 * model->room ? length : 2 * model->room;
  if (APP_MAX_POSITIONS && room > APP_MAX_POSITIONS) room = APP_MAX_POSITIONS;
  Model old = *model;
  const int64_t shape[4] = {1, APP_CACHE_HEADS, (int64_t)room, APP_CACHE_SIZE};
  int64_t *ids = allocate((3 * room + 1) * sizeof *ids);
  char *caches = ids ? allocate(CACHE_HEADS * room * CACHE_ROW) : NULL;
  if (!caches) {
    if (ids) munmap(ids, (3 * room + 1) * sizeof *ids);
    return 0;
  }
  model->ids = ids, model->caches = caches, model->room = room;
  memcpy(ids, old.ids ? old.ids : ids, old.cached * sizeof *ids);
  for (size_t i = 0; i < room; i++) ids[room + 1 + i] = 1, ids[2 * room + 1 + i] = (int64_t)i;
  for (size_t i = 0; old.caches && i < CACHE_HEADS; i++)
    memcpy(caches + i * room * CACHE_ROW, old.caches + i * old.room * CACHE_ROW, old.cached * CACHE_ROW);
  release_memory(&old);
  for (int i = 0; i < CACHES; i++) {
    char past[256], present[256], *data = caches + (size_t)i * APP_CACHE_HEADS * room * CACHE_ROW;
    snprintf(past, sizeof past, "past_key_values.%s", APP_CACHE[i]);
    snprintf(present, sizeof present, "present.%s", APP_CACHE[i]);
    if (!bind(model, 0, past, data, APP_CACHE_BYTES, shape, 4, APP_CACHE_TYPE) ||
        !bind(model, 1, present, data, APP_CACHE_BYTES, shape, 4, APP_CACHE_TYPE))
      return 0;
  }
  return 1;
}

/* Reads the tokens from the cached ones up to end; returns the logits of the next, or NULL. */
static float *run(Model *model, size_t end, const OrtRunOptions *options) {
  size_t fresh = end - model->cached, rows = APP_LOGITS_OF_ALL ? fresh : 1;
  if (rows > model->logits_tokens) {
    float *moved = realloc(model->logits, rows * APP_VOCABULARY * sizeof *moved);
    if (!moved) return session_fail("not enough memory for so long a text", ""), NULL;
    model->logits = moved, model->logits_tokens = rows;
  }
  const int64_t step[2] = {1, (int64_t)fresh}, whole[2] = {1, (int64_t)end};
  const int64_t out[3] = {1, (int64_t)rows, APP_VOCABULARY};
  const struct { const char *name; int64_t *data; const int64_t *shape; } inputs[] = {
      {"input_ids", model->ids + model->cached, step},
      {"attention_mask", model->ids + model->room + 1, whole},
      {"position_ids", model->ids + 2 * model->room + 1 + model->cached, step}};
  for (int i = 0; i < 3; i++)
    if (strstr(" " APP_INPUTS " ", inputs[i].name) &&
        !bind(model, 0, inputs[i].name, inputs[i].data, sizeof(int64_t), inputs[i].shape, 2, INT64))
      return NULL;
  if (!bind(model, 1, "logits", model->logits, sizeof(float), out, 3, FLOAT)) return NULL;
  TRY(RunWithBinding(model->session.session, options, model->binding));
  model->cached = end;
  return model->logits + (rows - 1) * APP_VOCABULARY;
}

static int stops_at(int64_t token) {
  for (int i = 0; i < STOPS; i++)
    if (token == APP_STOP[i]) return 1;
  return 0;
}

/* Continues count tokens of ids, up to length in the cache. Returns 0 if that fails. */
static int generate(Model *model, size_t count, size_t length, const Options *options, Sampler *sampler,
                    Show show, void *user) {
  Text *answer = &model->turns[model->turn_count - 1].answer;
  const char *stops = options->stop_strings ? options->stop_strings : "";
  size_t end = count, shown = 0;
  int stopped = 0, goes_on = 1;
  for (long step = 0; goes_on && !stopped && step < options->max_new_tokens; step++) {
    float *logits = run(model, end, step ? NULL : model->after_prompt);
    if (!logits) return 0;
    /* the kernel reads 64 KB around each embedding */
    if (step % 2) session_release(&model->session, step == 1);
    int64_t token = model->ids[end] = sampler_select(sampler, logits);
    sampler_see(sampler, token);
    model->last.count = end + 1 - count;
    if (stops_at(token)) break;
    size_t bytes;
    const char *text = tokenizer_text(model->tokenizer, token, &bytes);
    if (!text_add(answer, text, bytes)) return session_fail("not enough memory", ""), 0;
    size_t certain = text_certain(answer, shown, stops, &stopped);
    goes_on = show(user, answer->bytes + shown, certain);
    shown += certain;
    if (end++ == length) break;
  }
  if (!stopped && goes_on) show(user, answer->bytes + shown, answer->length - shown), shown = answer->length;
  answer->bytes[answer->length = shown] = 0;
  if (APP_TRIM_ANSWER) text_trim(answer);
  return 1;
}

int model_answer(Model *model, const char *prompt, const Options *options, Show show, void *user) {
  const char *problem = "max_new_tokens must be 1 or more";
  Sampler *sampler = options->max_new_tokens < 1 ? NULL : sampler_open(options, APP_VOCABULARY, &problem);
  if (!sampler) return session_fail(problem, ""), 0;
  size_t count = 0, kept = 0;
  int64_t *ids = add_turn(model, prompt, &count);
  int answered = 0;
  if (ids) {
    size_t length = count + (size_t)options->max_new_tokens;
    if (APP_MAX_POSITIONS && length > APP_MAX_POSITIONS) length = APP_MAX_POSITIONS;
    while (kept < model->cached && kept + 1 < count && model->ids[kept] == ids[kept]) kept++;
    model->cached = kept;
    if (reserve(model, length)) {
      memcpy(model->ids, ids, count * sizeof *ids);
      for (size_t i = 0; i < count; i++) sampler_see(sampler, ids[i]);
      model->last = (Answer){count - kept, 0, model->ids + count};
      answered = generate(model, count, length, options, sampler, show, user);
    }
  }
  free(ids);
  sampler_close(sampler);
  return answered;
}
