/* Converses with the model: ./app "What is the capital of France?"
   Each prompt is a turn; without any, each line typed is one. Ctrl-C ends an answer. A model that reads
   images is asked about one with --image photo.jpg. */
#define _POSIX_C_SOURCE 200809L
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model.h"
#include "photo.h"

static volatile sig_atomic_t answering, stopped;

static void interrupt(int number) {
  (void)number;
  if (!answering) _exit(130);
  stopped = 1;
}

static int show(void *user, const char *text, size_t length) {
  (void)user;
  fwrite(text, 1, length, stdout);
  fflush(stdout);
  return !stopped;
}

static int answer(Model *model, const char *prompt, const Options *options) {
  answering = 1, stopped = 0;
  int answered = model_answer(model, prompt, options, show, NULL);
  answering = 0;
  if (answered) putchar('\n');
  return answered;
}

static int answer_lines(Model *model, const Options *options) {
  char *line = NULL;
  size_t size = 0;
  ssize_t length;
  int answered = 1;
  for (;;) {
    if (isatty(0)) printf("> "), fflush(stdout);
    if ((length = getline(&line, &size, stdin)) < 0) break;
    if (length && line[length - 1] == '\n') line[length - 1] = 0;
    if (*line && !(answered = answer(model, line, options))) break;
  }
  free(line);
  return answered;
}

static int see_image(Model *model, const char *path) {
  size_t height, width;
  const char *problem;
  if (!model_reads_images()) return fprintf(stderr, "app: %s: the model reads no images\n", path), 0;
  uint8_t *pixels = photo_read(path, &height, &width, &problem);
  int seen = 0;
  if (!pixels) fprintf(stderr, "app: %s: cannot be read (%s)\n", path, problem);
  else if (!(seen = model_see_image(model, pixels, height, width)))
    fprintf(stderr, "app: %s: %s\n", path, model_problem());
  free(pixels);
  return seen;
}

static double number(const char *text) {
  char *rest;
  double value = strtod(text, &rest);
  if (*text && !*rest) return value;
  fprintf(stderr, "app: %s: not a number\n", text);
  exit(2);
}

int main(int count, char **words) {
  static const struct option names[] = {
      {"max-new-tokens", 1, NULL, 'n'}, {"temperature", 1, NULL, 't'},        {"top-k", 1, NULL, 'k'},
      {"top-p", 1, NULL, 'p'},          {"repetition-penalty", 1, NULL, 'r'}, {"seed", 1, NULL, 's'},
      {"stop-string", 1, NULL, 'x'},    {"image", 1, NULL, 'i'},              {NULL, 0, NULL, 0}};
  Options options = model_options();
  char stops[4096] = "", *end = stops;
  const char *image = NULL;
  for (int name; (name = getopt_long(count, words, "", names, NULL)) != -1;) {
    if (name == 'n') options.max_new_tokens = (long)number(optarg);
    else if (name == 't') options.temperature = number(optarg);
    else if (name == 'k') options.top_k = (long)number(optarg);
    else if (name == 'p') options.top_p = number(optarg);
    else if (name == 'r') options.repetition_penalty = number(optarg);
    else if (name == 's') options.seed = (int64_t)number(optarg);
    else if (name == 'i') image = optarg;
    else if (name == 'x' && strlen(optarg) + 2 < sizeof stops - (size_t)(end - stops)) {
      options.stop_strings = stops;
      end = stpcpy(end, optarg) + 1, *end = 0;
    } else return 2; /* getopt has said why */
  }
  sigaction(SIGINT, &(struct sigaction){.sa_handler = interrupt}, NULL);

  Model *model = model_open(".");
  if (model && image && !see_image(model, image)) return model_close(model), 2;
  if (model && !image && model_needs_image()) {
    fprintf(stderr, "app: the model writes the text of an image; give it one with --image\n");
    return model_close(model), 2;
  }
  int answered = model != NULL, has_prompts = optind < count;
  if (answered && !has_prompts) {
    if (model_needs_image()) answered = answer(model, "", &options);
    else answered = answer_lines(model, &options);
  }
  for (int i = optind; answered && i < count; i++) answered = answer(model, words[i], &options);
  if (answered) fprintf(stderr, "app: run by %s\n", model_provider(model));
  else fprintf(stderr, "app: %s\n", model_problem());
  model_close(model);
  return !answered;
}
