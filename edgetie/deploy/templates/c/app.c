/* Answers a prompt: ./app "What is the capital of France?" [most tokens] [--tokens] */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

static int show(void *ids_only, const char *text, size_t length, int64_t token, int ends) {
  if (ids_only)
    printf("%" PRId64 "\n", token);
  else if (!ends)
    fwrite(text, 1, length, stdout);
  fflush(stdout);
  return ids_only || !ends;
}

int main(int count, char **words) {
  const char *prompt = count > 1 ? words[1] : "What is the capital of France?";
  char *rest = "";
  long most = count > 2 ? strtol(words[2], &rest, 10) : 128;
  if (*rest || most < 1) return fprintf(stderr, "app: %s: not a number of tokens\n", words[2]), 2;
  char *ids_only = count > 3 && !strcmp(words[3], "--tokens") ? words[3] : NULL;

  Model *model = model_open(".");
  int answered = model && model_answer(model, prompt, most, show, ids_only);
  if (!answered) fprintf(stderr, "app: %s\n", model_problem());
  if (answered && !ids_only) putchar('\n');
  if (answered) fprintf(stderr, "app: run by %s\n", model_provider(model));
  if (getenv("APP_MEMORY")) { /* memory of the process, kB */
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status))
      if (!strncmp(line, "Vm", 2) || !strncmp(line, "Rss", 3)) fputs(line, stderr);
    if (status) fclose(status);
  }
  model_close(model);
  return !answered;
}
