#include "images.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"

enum { INPUTS = sizeof APP_IMAGE_INPUTS / sizeof *APP_IMAGE_INPUTS - 1 };
enum { FEEDS = sizeof APP_IMAGE_FEEDS / sizeof *APP_IMAGE_FEEDS - 1 };

int images_open(ImageReader *reader, const char *folder) {
  char path[4096];
  snprintf(path, sizeof path, "%s/" APP_PROCESSOR, folder);
  if (!session_open(&reader->processor, path)) return 0;
  snprintf(path, sizeof path, "%s/" APP_ENCODER, folder);
  return session_open(&reader->encoder, path);
}

void images_close(ImageReader *reader) {
  session_close(&reader->processor);
  session_close(&reader->encoder);
}

static void release(OrtValue **values, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (values[i]) session_api->ReleaseValue(values[i]);
}

void images_free(Image *image) {
  if (!image) return;
  if (image->feeds) release(image->feeds, FEEDS);
  free(image->feeds), free(image);
}

/* The first size of a tensor; 0 if that fails. */
static size_t length_of(const OrtValue *value) {
  OrtTensorTypeAndShapeInfo *info = NULL;
  int64_t sizes[8] = {0};
  size_t rank = 0;
  if (session_failed(session_api->GetTensorTypeAndShape(value, &info))) return 0;
  int failed = session_failed(session_api->GetDimensionsCount(info, &rank)) || rank > 8 ||
               session_failed(session_api->GetDimensions(info, sizes, rank));
  session_api->ReleaseTensorTypeAndShapeInfo(info);
  return failed ? 0 : (size_t)sizes[0];
}

static int run(const ImageReader *reader, OrtValue *pixels, Image *image) {
  static const char *const name[] = {"image"};
  const OrtValue *given[] = {pixels};
  OrtValue *inputs[INPUTS + 1] = {NULL};
  int done = !session_failed(session_api->Run(reader->processor.session, NULL, name, given, 1,
                                              APP_IMAGE_INPUTS, INPUTS, inputs)) &&
             !session_failed(session_api->Run(reader->encoder.session, NULL, APP_IMAGE_INPUTS,
                                              (const OrtValue *const *)inputs, INPUTS,
                                              APP_IMAGE_OUTPUTS, FEEDS, image->feeds));
  for (int i = 0; done && i < INPUTS; i++) {
    void *grid;
    if (strcmp(APP_IMAGE_INPUTS[i], "image_grid_thw")) continue;
    done = !session_failed(session_api->GetTensorMutableData(inputs[i], &grid));
    if (done) memcpy(image->grid, grid, sizeof image->grid);
  }
  release(inputs, INPUTS);
  return done && (image->tokens = length_of(image->feeds[0]));
}

Image *images_read(const ImageReader *reader, const uint8_t *pixels, size_t height, size_t width) {
  static int64_t number;
  const int64_t shape[] = {(int64_t)height, (int64_t)width, 3};
  Image *image = calloc(1, sizeof *image);
  OrtValue *value = NULL;
  if (image) image->feeds = calloc(FEEDS + 1, sizeof *image->feeds);
  if (!image || !image->feeds) return session_fail("not enough memory", ""), images_free(image), NULL;
  image->number = ++number;
  if (!session_failed(session_api->CreateTensorWithDataAsOrtValue(
          reader->processor.cpu, (void *)pixels, height * width * 3, shape, 3,
          ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &value)) &&
      run(reader, value, image)) {
    session_api->ReleaseValue(value);
    return image;
  }
  char reason[200], what[100];
  snprintf(reason, sizeof reason, " (%.*s)", (int)strcspn(session_problem(), "\n"), session_problem());
  snprintf(what, sizeof what, "the model does not read an image of %zu x %zu pixels", width, height);
  session_fail(what, reason);
  if (value) session_api->ReleaseValue(value);
  images_free(image);
  return NULL;
}

const float *images_rows(const Image *image, size_t feed) {
  void *rows;
  return session_failed(session_api->GetTensorMutableData(image->feeds[feed], &rows)) ? NULL : rows;
}

int64_t images_positions(const int64_t *ids, size_t count, Image *const *images, int64_t *positions) {
  int64_t next = 0;
  for (size_t i = 0; i < count;) {
    if (ids[i] != APP_IMAGE_TOKEN_ID) {
      for (int axis = 0; axis < 3; axis++) positions[axis * count + i] = next;
      i++, next++;
      continue;
    }
    const Image *image = *images++;
    const int64_t *grid = image->grid;
    int64_t merge = llround(sqrt((double)(grid[0] * grid[1] * grid[2]) / image->tokens));
    int64_t height = grid[1] / merge, width = grid[2] / merge, longest = grid[0];
    for (size_t k = 0; k < image->tokens; k++) {
      int64_t token = (int64_t)k;
      positions[i + k] = next + token / (height * width);
      positions[count + i + k] = next + token / width % height;
      positions[2 * count + i + k] = next + token % width;
    }
    if (height > longest) longest = height;
    if (width > longest) longest = width;
    i += image->tokens, next += longest;
  }
  return next;
}
