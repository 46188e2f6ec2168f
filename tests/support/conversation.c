/* Holds a conversation on the starter's C core: ./conversation MOST TEMPERATURE SEED STOP PROMPTS
   Prints for each turn the tokens read, those written, and the text's bytes; on stderr the provider
   and the memory of the process in kB. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

static char text[1 << 20];

static int show(void *length, const char *part, size_t size) {
  memcpy(text + *(size_t *)length, part, size);
  *(size_t *)length += size;
  return 1;
}

int main(int count, char **words) {
  char stops[1000] = {0};
  Options options = model_options();
  options.max_new_tokens = strtol(words[1], NULL, 10);
  options.temperature = strtod(words[2], NULL);
  options.seed = strtoll(words[3], NULL, 10);
  options.stop_strings = strcpy(stops, words[4]);
  Model *model = model_open(".");
  for (int i = 5; model && i < count; i++) {
    size_t length = 0;
    if (!model_answer(model, words[i], &options, show, &length)) break;
    const Answer *last = model_last(model);
    printf("%zu\x1f", last->read);
    for (size_t token = 0; token < last->count; token++) printf("%" PRId64 " ", last->tokens[token]);
    printf("\x1f");
    for (size_t byte = 0; byte < length; byte++) printf("%02x", (unsigned char)text[byte]);
    printf("\x1e");
  }
  if (!model || *model_problem()) return fprintf(stderr, "%s\n", model_problem()), 1;
  fprintf(stderr, "run by %s\n", model_provider(model));
  FILE *status = fopen("/proc/self/status", "r");
  for (char line[256]; status && fgets(line, sizeof line, status);)
    if (!strncmp(line, "Vm", 2) || !strncmp(line, "Rss", 3)) fputs(line, stderr);
  if (status) fclose(status);
  model_close(model);
}
