/* Prints the height, the width and the pixels of an image file: ./photo_pixels FILE */
#include <stdio.h>
#include <stdlib.h>

#include "photo.h"

int main(int count, char **words) {
  size_t height, width;
  const char *problem;
  uint8_t *pixels = count == 2 ? photo_read(words[1], &height, &width, &problem) : NULL;
  if (!pixels) return fprintf(stderr, "%s", problem), 2;
  printf("%zu %zu\n", height, width);
  fwrite(pixels, 3, height * width, stdout);
  free(pixels);
}
