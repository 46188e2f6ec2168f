#define _GNU_SOURCE
#include "model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "app.h"
#include "images.h"
#include "sampler.h"
#include "session.h"
#include "text.h"
#include "tokenizer.h"

enum { CACHES = sizeof APP_CACHE / sizeof *APP_CACHE, STOPS = sizeof APP_STOP / sizeof *APP_STOP };
enum { INT64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, FLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT };

enum { FEEDS = sizeof APP_IMAGE_FEEDS / sizeof *APP_IMAGE_FEEDS - 1 };

typedef struct {
  Text prompt, answer;
  Image *image; /* NULL if there is none */
} Turn;

struct Model {
  Session session;
  ImageReader reader;
  Image *next_image; /* of the next prompt */
  OrtIoBinding *binding;
  OrtRunOptions *after_prompt; /* shrinks the arena: a prompt needs more memory than a step */
  Tokenizer *tokenizer;
  Turn *turns;
  size_t turn_count;
  int64_t *ids;    /* tokens of the conversation, followed by a mask of ones, positions, and keys: the
                      tokens, or the numbers of their images below 0 */
  char *caches;    /* keys and values of the first tokens */
  size_t cached;   /* how many */
  size_t room;     /* tokens that there is memory for */
  float *logits;
  size_t logits_tokens;
  float *rows[FEEDS + 1]; /* embeddings of all images of the conversation */
  size_t row_count;
  int64_t *positions; /* of the prompt, if they have three axes */
  size_t prompt_count;
  int64_t next_position; /* after the prompt */
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
  if (APP_IMAGES && !images_open(&model->reader, folder)) return 0;
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

static void free_turn(Turn *turn) {
  free(turn->prompt.bytes), free(turn->answer.bytes);
  images_free(turn->image);
}

static void forget(Model *model, size_t count) { /* the oldest turns */
  for (size_t i = 0; i < count; i++) free_turn(&model->turns[i]);
  model->turn_count -= count;
  if (count) memmove(model->turns, model->turns + count, model->turn_count * sizeof *model->turns);
}

void model_reset(Model *model) { forget(model, model->turn_count); }

enum { CACHE_ROW = APP_CACHE_SIZE * APP_CACHE_BYTES, CACHE_HEADS = CACHES * APP_CACHE_HEADS };

static void release_memory(Model *model) {
  if (model->ids) munmap(model->ids, (4 * model->room + 1) * sizeof *model->ids);
  if (model->caches) munmap(model->caches, CACHE_HEADS * model->room * CACHE_ROW);
}

void model_close(Model *model) {
  if (!model) return;
  if (model->after_prompt) session_api->ReleaseRunOptions(model->after_prompt);
  if (model->binding) session_api->ReleaseIoBinding(model->binding);
  session_close(&model->session);
  images_free(model->next_image);
  images_close(&model->reader);
  if (model->tokenizer) tokenizer_close(model->tokenizer);
  model_reset(model);
  release_memory(model);
  for (int i = 0; i < FEEDS; i++) free(model->rows[i]);
  free(model->turns), free(model->logits), free(model->positions), free(model);
}

int model_reads_images(void) { return APP_IMAGES; }

int model_needs_image(void) { return APP_NEEDS_IMAGE; }

int model_see_image(Model *model, const uint8_t *pixels, size_t height, size_t width) {
  Image *image = APP_IMAGES ? images_read(&model->reader, pixels, height, width) : NULL;
  if (!APP_IMAGES) session_fail("the model reads no images", "");
  if (!image) return 0;
  images_free(model->next_image);
  model->next_image = image;
  return 1;
}

static int add(Text *text, const char *part) { return text_add(text, part, strlen(part)); }

/* Adds the text before a prompt, which has the tokens of its image. */
static int add_before(Text *text, const Turn *turn, int is_first) {
  if (!turn->image || APP_NEEDS_IMAGE) return add(text, is_first ? APP_BEFORE_PROMPT : APP_NEXT_PROMPT);
  int written = add(text, is_first ? APP_BEFORE_IMAGE : APP_NEXT_BEFORE_IMAGE);
  for (size_t i = 0; i < turn->image->tokens; i++) written &= add(text, APP_IMAGE_TOKEN);
  return written & add(text, is_first ? APP_AFTER_IMAGE : APP_NEXT_AFTER_IMAGE);
}

/* The tokens of the conversation as the chat template writes it, to be freed; NULL if that fails. */
static int64_t *encode(const Model *model, size_t *count) {
  Text text = {0};
  int written = 1;
  for (size_t i = 0; i < model->turn_count; i++) {
    const Turn *turn = &model->turns[i];
    int is_last = i + 1 == model->turn_count;
    written &= add_before(&text, turn, !i) && text_add(&text, turn->prompt.bytes, turn->prompt.length) &&
               add(&text, is_last ? APP_AFTER_PROMPT : APP_BEFORE_ANSWER) &&
               (is_last || text_add(&text, turn->answer.bytes, turn->answer.length));
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
  turn.image = model->next_image, model->next_image = NULL;
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

static int64_t *keys_of(const Model *model) { return model->ids + 3 * model->room + 1; }

/* Finds the places of images in a prompt: the keys of its tokens, the embeddings of all images and the
   positions of tokens. Returns 0 if that fails. */
static int place_images(Model *model, const int64_t *ids, int64_t *keys, size_t count) {
  Image *images[model->turn_count + 1];
  size_t image_count = 0, places = 0, used = 0;
  memcpy(keys, ids, count * sizeof *keys);
  if (!APP_IMAGES || APP_NEEDS_IMAGE) return 1;
  model->row_count = 0;
  for (size_t i = 0; i < model->turn_count; i++)
    if (model->turns[i].image) model->row_count += (images[image_count++] = model->turns[i].image)->tokens;
  for (size_t i = 0; i < count; i++) places += ids[i] == APP_IMAGE_TOKEN_ID;
  if (places != model->row_count)
    return session_fail(APP_IMAGE_TOKEN, " stands for an image; leave it out of the prompt"), 0;
  for (size_t i = 0, place = 0; i < count; i++) {
    if (ids[i] != APP_IMAGE_TOKEN_ID) continue;
    if (used == images[place]->tokens) place++, used = 0;
    keys[i] = -images[place]->number, used++;
  }
  for (int feed = 0; feed < FEEDS; feed++) {
    float *end = realloc(model->rows[feed], (places * APP_IMAGE_SIZE + 1) * sizeof *end);
    if (!end) return session_fail("not enough memory", ""), 0;
    model->rows[feed] = end;
    for (size_t i = 0; i < image_count; i++) {
      size_t values = images[i]->tokens * APP_IMAGE_SIZE;
      const float *source = images_rows(images[i], (size_t)feed);
      if (!source) return 0;
      memcpy(end, source, values * sizeof *end), end += values;
    }
  }
  if (APP_POSITION_AXES == 1) return 1;
  int64_t *positions = realloc(model->positions, 6 * count * sizeof *positions);
  if (!positions) return session_fail("not enough memory", ""), 0;
  model->positions = positions, model->prompt_count = count;
  model->next_position = images_positions(ids, count, images, positions);
  return 1;
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
  int64_t *ids = allocate((4 * room + 1) * sizeof *ids);
  char *caches = ids && APP_CACHE_IN_PLACE ? allocate(CACHE_HEADS * room * CACHE_ROW) : NULL;
  if (!ids || (APP_CACHE_IN_PLACE && !caches)) {
    if (ids) munmap(ids, (4 * room + 1) * sizeof *ids);
    return 0;
  }
  model->ids = ids, model->caches = caches, model->room = room;
  if (old.ids) {
    memcpy(ids, old.ids, old.cached * sizeof *ids);
    memcpy(keys_of(model), keys_of(&old), old.cached * sizeof *ids);
  }
  for (size_t i = 0; i < room; i++) ids[room + 1 + i] = 1, ids[2 * room + 1 + i] = (int64_t)i;
  for (size_t i = 0; old.caches && i < CACHE_HEADS; i++)
    memcpy(caches + i * room * CACHE_ROW, old.caches + i * old.room * CACHE_ROW, old.cached * CACHE_ROW);
  release_memory(&old);
  for (int i = 0; APP_CACHE_IN_PLACE && i < CACHES; i++) {
    char past[256], present[256], *data = caches + (size_t)i * APP_CACHE_HEADS * room * CACHE_ROW;
    snprintf(past, sizeof past, "past_key_values.%s", APP_CACHE[i]);
    snprintf(present, sizeof present, "present.%s", APP_CACHE[i]);
    if (!bind(model, 0, past, data, APP_CACHE_BYTES, shape, 4, APP_CACHE_TYPE) ||
        !bind(model, 1, present, data, APP_CACHE_BYTES, shape, 4, APP_CACHE_TYPE))
      return 0;
  }
  return 1;
}

/* Binds caches that are not in place: before the first run empty ones, then what the last run returned. */
static int bind_caches(Model *model, int is_first) {
  const int64_t shape[4] = {1, APP_CACHE_HEADS, 0, APP_CACHE_SIZE};
  OrtAllocator *allocator;
  OrtValue **values = NULL;
  size_t count = 0;
  int bound = 1;
  TRY(GetAllocatorWithDefaultOptions(&allocator));
  if (!is_first) TRY(GetBoundOutputValues(model->binding, allocator, &values, &count));
  for (int i = 0; i < CACHES; i++) { /* their outputs are bound first */
    char past[256], present[256];
    snprintf(past, sizeof past, "past_key_values.%s", APP_CACHE[i]);
    snprintf(present, sizeof present, "present.%s", APP_CACHE[i]);
    bound = bound && (is_first ? bind(model, 0, past, model->ids, APP_CACHE_BYTES, shape, 4, APP_CACHE_TYPE)
                               : !session_failed(session_api->BindInput(model->binding, past, values[i])));
    bound = bound && !session_failed(session_api->BindOutputToDevice(model->binding, present,
                                                                     model->session.cpu));
  }
  for (size_t i = 0; i < count; i++) session_api->ReleaseValue(values[i]);
  if (values) TRY(AllocatorFree(allocator, values));
  return bound;
}

/* Binds what the decoder reads of images: all of one, or the last embeddings, of tokens to read. */
static int bind_images(Model *model, const int64_t *ids, size_t fresh) {
  size_t count = 0;
  for (size_t i = 0; i < fresh; i++) count += ids[i] == APP_IMAGE_TOKEN_ID;
  const int64_t shape[2] = {(int64_t)count, APP_IMAGE_SIZE};
  const Image *last = model->turns[model->turn_count - 1].image;
  for (int i = 0; i < FEEDS; i++) {
    if (APP_NEEDS_IMAGE) {
      TRY(BindInput(model->binding, APP_IMAGE_FEEDS[i], last->feeds[i]));
      continue;
    }
    float *rows = model->rows[i] + (model->row_count - count) * APP_IMAGE_SIZE;
    if (!bind(model, 0, APP_IMAGE_FEEDS[i], rows, sizeof *rows, shape, 2, FLOAT)) return 0;
  }
  return 1;
}

/* Binds the positions of tokens to read, which have three axes. */
static int bind_positions(Model *model, size_t fresh) {
  const int64_t shape[3] = {3, 1, (int64_t)fresh};
  size_t known = model->prompt_count;
  int64_t *positions = model->positions + 3 * known;
  for (size_t axis = 0; axis < 3; axis++)
    for (size_t i = 0; i < fresh; i++) {
      size_t at = model->cached + i;
      positions[axis * fresh + i] =
          at < known ? model->positions[axis * known + at] : model->next_position + (int64_t)(at - known);
    }
  return bind(model, 0, "position_ids", positions, sizeof *positions, shape, 3, INT64);
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
  for (int i = 0; i < (APP_POSITION_AXES == 1 ? 3 : 2); i++)
    if (strstr(" " APP_INPUTS " ", inputs[i].name) &&
        !bind(model, 0, inputs[i].name, inputs[i].data, sizeof(int64_t), inputs[i].shape, 2, INT64))
      return NULL;
  if ((APP_POSITION_AXES != 1 && !bind_positions(model, fresh)) ||
      !bind_images(model, model->ids + model->cached, fresh) ||
      (!APP_CACHE_IN_PLACE && !bind_caches(model, !model->cached)) ||
      !bind(model, 1, "logits", model->logits, sizeof(float), out, 3, FLOAT))
    return NULL;
  TRY(RunWithBinding(model->session.session, options, model->binding));
  model->cached = end;
  float *logits = model->logits + (rows - 1) * APP_VOCABULARY;
  if (APP_IMAGE_TOKEN_ID >= 0) logits[APP_IMAGE_TOKEN_ID] = -INFINITY; /* it is not text */
  return logits;
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
    int64_t token = model->ids[end] = keys_of(model)[end] = sampler_select(sampler, logits);
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
  int64_t *ids = NULL, *keys = NULL;
  int answered = 0;
  if (APP_NEEDS_IMAGE && !model->next_image)
    session_fail("the model writes the text of an image; give it one", "");
  else
    ids = add_turn(model, prompt, &count);
  if (ids && !(keys = malloc(count * sizeof *keys))) session_fail("not enough memory", "");
  if (keys && !place_images(model, ids, keys, count)) {
    free_turn(&model->turns[--model->turn_count]);
  } else if (keys) {
    size_t length = count + (size_t)options->max_new_tokens;
    if (APP_MAX_POSITIONS && length > APP_MAX_POSITIONS) length = APP_MAX_POSITIONS;
    while (kept < model->cached && kept + 1 < count && keys_of(model)[kept] == keys[kept]) kept++;
    if (!APP_CACHE_IN_PLACE && (!APP_HISTORY || kept < model->cached)) kept = 0; /* it is whole */
    model->cached = kept;
    if (reserve(model, length)) {
      memcpy(model->ids, ids, count * sizeof *ids);
      memcpy(keys_of(model), keys, count * sizeof *keys);
      for (size_t i = 0; !APP_NEEDS_IMAGE && i < count; i++) sampler_see(sampler, ids[i]);
      model->last = (Answer){count - kept, 0, model->ids + count};
      answered = generate(model, count, length, options, sampler, show, user);
    }
  }
  if (!answered) model->cached = 0;
  free(ids), free(keys);
  sampler_close(sampler);
  return answered;
}
