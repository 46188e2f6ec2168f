/* A language model and a conversation with it, on ONNX Runtime's C API; app.h has their settings. */
#ifndef MODEL_H
#define MODEL_H

#include <stddef.h>
#include <stdint.h>

typedef struct Model Model;

/* How an answer is generated. */
typedef struct {
  long max_new_tokens;
  double temperature;        /* 0: always the most likely token; 1: as the model learned */
  long top_k;                /* draw among the most likely tokens; 0: among all */
  double top_p;              /* draw among those that together reach this probability */
  double repetition_penalty; /* above 1: tokens that occurred before are less likely */
  int64_t seed;              /* the same one draws the same tokens; negative: another one each time */
  const char *stop_strings;  /* texts that end an answer, each ended by \0, the last by another */
} Options;

/* What model_answer did. */
typedef struct {
  size_t read;           /* tokens that it read; the cache had those before them */
  size_t count;          /* tokens that it wrote, the one that ended the answer included */
  const int64_t *tokens; /* those; valid until the next call */
} Answer;

/* Called for each token with the text that is complete since the last call, UTF-8 of whole
   characters, which may be empty. Returns whether to go on: an app stops an answer here. */
typedef int (*Show)(void *user, const char *text, size_t length);

/* Opens the model in the subfolder model/. NULL if that fails; model_problem() returns the reason. */
Model *model_open(const char *folder);
void model_close(Model *model);

/* The options that the model's own settings say, with 256 tokens at most. */
Options model_options(void);

/* Answers a prompt, which continues the conversation: only new tokens are read, the cache has the
   others. The oldest turns are forgotten if the conversation fills three quarters of what the model
   accepts. Returns 0 if that fails. */
int model_answer(Model *model, const char *prompt, const Options *options, Show show, void *user);

/* Lets the next prompt, and those that follow, be about an image: RGB pixels, row by row. Returns 0 if
   that fails. */
int model_see_image(Model *model, const uint8_t *pixels, size_t height, size_t width);

/* Whether the model reads images, and whether each prompt, which may be empty then, needs one. */
int model_reads_images(void);
int model_needs_image(void);

/* Begins a new conversation. */
void model_reset(Model *model);

const Answer *model_last(const Model *model);

/* The execution provider that runs the model: edgetie's and its nodes, or cpu, ONNX Runtime's own, and
   why. */
const char *model_provider(const Model *model);

/* The reason why the last call in this thread failed. */
const char *model_problem(void);

#endif
