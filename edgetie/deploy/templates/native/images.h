/* Images as the model reads them: the graphs of the image processor and of the encoder. */
#ifndef IMAGES_H
#define IMAGES_H

#include <stddef.h>
#include <stdint.h>

#include "session.h"

typedef struct {
  Session processor, encoder;
} ImageReader;

/* What the decoder reads of an image. */
typedef struct {
  OrtValue **feeds; /* in the order of APP_IMAGE_FEEDS */
  size_t tokens;    /* image tokens of the image in a prompt */
  int64_t grid[3];  /* patches in time, height and width, if the model has positions of three axes */
  int64_t number;   /* another one for each image */
} Image;

/* Returns 0 if that fails; session_problem() returns the reason. */
int images_open(ImageReader *reader, const char *folder);
void images_close(ImageReader *reader);

/* Reads RGB pixels, row by row. NULL if that fails. */
Image *images_read(const ImageReader *reader, const uint8_t *pixels, size_t height, size_t width);
void images_free(Image *image);

/* The embeddings of an image in one of its feeds: tokens times APP_IMAGE_SIZE. NULL if that fails. */
const float *images_rows(const Image *image, size_t feed);

/* Writes positions in time, height and width of count tokens, three rows of them (Qwen2-VL). The
   tokens of an image have its time, and the row and column of their patch, counted from the position
   after the text before; the text after it goes on after the largest of these. Returns the next one. */
int64_t images_positions(const int64_t *ids, size_t count, Image *const *images, int64_t *positions);

#endif
