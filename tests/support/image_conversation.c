/* Asks the starter's C core about images: ./image_conversation MOST IMAGE PROMPT IMAGE PROMPT ...
   Each image begins a new conversation; "-" goes on with the last one. Prints what conversation.c
   prints. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "photo.h"

static char text[1 << 20];

static int show(void *length, const char *part, size_t size) {
  memcpy(text + *(size_t *)length, part, size);
  *(size_t *)length += size;
  return 1;
}

int main(int count, char **words) {
  Options options = model_options();
  options.max_new_tokens = strtol(words[1], NULL, 10);
  Model *model = model_open(".");
  for (int i = 2; model && i + 1 < count; i += 2) {
    size_t length = 0, height, width;
    const char *problem = "";
    if (strcmp(words[i], "-")) {
      uint8_t *pixels = photo_read(words[i], &height, &width, &problem);
      if (!pixels) return fprintf(stderr, "%s: %s\n", words[i], problem), 1;
      model_reset(model);
      int seen = model_see_image(model, pixels, height, width);
      free(pixels);
      if (!seen) break;
    }
    if (!model_answer(model, words[i + 1], &options, show, &length)) break;
    const Answer *last = model_last(model);
    printf("%zu\x1f", last->read);
    for (size_t token = 0; token < last->count; token++) printf("%" PRId64 " ", last->tokens[token]);
    printf("\x1f");
    for (size_t byte = 0; byte < length; byte++) printf("%02x", (unsigned char)text[byte]);
    printf("\x1e");
  }
  if (!model || *model_problem()) return fprintf(stderr, "%s\n", model_problem()), 1;
  model_close(model);
}
