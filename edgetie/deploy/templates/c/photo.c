#define _POSIX_C_SOURCE 200809L
#include "photo.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef WITH_PNG
#include <png.h>
#endif
#ifdef WITH_JPEG
#include <setjmp.h>

#include <jpeglib.h>
#endif

enum { MOST_PIXELS = 1 << 27 };

typedef struct {
  uint8_t *pixels;
  size_t height, width;
} Photo;

static int allocate(Photo *photo, size_t height, size_t width) {
  if (!height || !width || height > MOST_PIXELS / width) return 0;
  photo->height = height, photo->width = width;
  return (photo->pixels = malloc(height * width * 3)) != NULL;
}

/* A number in the header of a PPM file, after spaces and comments; 0 if there is none. */
static size_t number(FILE *file) {
  int byte = getc(file);
  while (byte == '#' || byte == ' ' || (byte >= '\t' && byte <= '\r')) {
    while (byte == '#' && (byte = getc(file)) != '\n' && byte != EOF) byte = '#';
    byte = getc(file);
  }
  size_t value = 0;
  for (; byte >= '0' && byte <= '9' && value < MOST_PIXELS; byte = getc(file))
    value = 10 * value + (size_t)(byte - '0');
  return value; /* the byte after it is read */
}

static int read_ppm(FILE *file, Photo *photo, int channels) {
  fseek(file, 2, SEEK_SET);
  size_t width = number(file), height = number(file), most = number(file);
  if (most != 255 || !allocate(photo, height, width)) return 0;
  size_t count = height * width, size = (size_t)channels;
  if (fread(photo->pixels, size, count, file) != count) return 0;
  for (size_t i = count; size == 1 && i-- > 0;) memset(photo->pixels + 3 * i, photo->pixels[i], 3);
  return 1;
}

#ifdef WITH_PNG
static void fail_png(png_structp png, png_const_charp message) {
  (void)message;
  png_longjmp(png, 1);
}

static void ignore_png(png_structp png, png_const_charp message) { (void)png, (void)message; }

static int read_png(FILE *file, Photo *photo) {
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, NULL, fail_png, ignore_png);
  png_infop info = png ? png_create_info_struct(png) : NULL;
  png_bytep *volatile rows = NULL;
  uint8_t *volatile rgba = NULL;
  volatile int done = 0;
  if (info && !setjmp(png_jmpbuf(png))) {
    png_init_io(png, file);
    png_read_info(png, info);
    size_t height = png_get_image_height(png, info), width = png_get_image_width(png, info);
    png_set_expand(png), png_set_strip_16(png), png_set_gray_to_rgb(png);
    png_set_add_alpha(png, 255, PNG_FILLER_AFTER);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    if (allocate(photo, height, width) && (rows = malloc(height * sizeof *rows)) &&
        (rgba = malloc(height * width * 4))) {
      for (size_t y = 0; y < height; y++) rows[y] = rgba + y * width * 4;
      png_read_image(png, rows);
      for (size_t i = 0; i < height * width * 3; i++) {
        unsigned alpha = rgba[i / 3 * 4 + 3], level = rgba[i / 3 * 4 + i % 3];
        photo->pixels[i] = (uint8_t)((level * alpha + 255 * (255 - alpha) + 127) / 255);
      }
      done = 1;
    }
  }
  png_destroy_read_struct(&png, &info, NULL);
  free(rows), free(rgba);
  return done;
}
#endif

#ifdef WITH_JPEG
typedef struct {
  struct jpeg_error_mgr errors;
  jmp_buf jump;
} Errors;

static void fail_jpeg(j_common_ptr jpeg) { longjmp(((Errors *)jpeg->err)->jump, 1); }

static void ignore_jpeg(j_common_ptr jpeg) { (void)jpeg; }

/* The number of so many bytes of EXIF data. */
static unsigned word(const JOCTET *bytes, int size, int is_little) {
  unsigned value = 0;
  for (int i = 0; i < size; i++) value |= (unsigned)bytes[i] << 8 * (is_little ? i : size - 1 - i);
  return value;
}

/* The orientation in EXIF data, from 1 to 8; 1 if there is none. */
static int orientation_of(const struct jpeg_decompress_struct *jpeg) {
  for (jpeg_saved_marker_ptr marker = jpeg->marker_list; marker; marker = marker->next) {
    const JOCTET *data = marker->data + 6;
    unsigned size = marker->data_length;
    if (size < 22 || memcmp(marker->data, "Exif\0", 6)) continue;
    int is_little = data[0] == 'I';
    unsigned start = word(data + 4, 4, is_little);
    size -= 6;
    if (start > size - 2) continue;
    unsigned count = word(data + start, 2, is_little);
    for (unsigned at = start + 2; count-- && at + 12 <= size; at += 12) {
      unsigned value = word(data + at + 8, 2, is_little);
      if (word(data + at, 2, is_little) == 0x0112 && value >= 1 && value <= 8) return (int)value;
    }
  }
  return 1;
}

/* Turns and mirrors the pixels as an orientation says. */
static int turn(Photo *photo, int orientation) {
  Photo old = *photo;
  int swaps = orientation > 4, from_right = strchr("\2\3\6\7", orientation) != NULL;
  int from_below = strchr("\3\4\7\10", orientation) != NULL;
  if (orientation == 1) return 1;
  if (!allocate(photo, swaps ? old.width : old.height, swaps ? old.height : old.width))
    return *photo = old, 0;
  for (size_t y = 0; y < old.height; y++)
    for (size_t x = 0; x < old.width; x++) {
      size_t row = swaps ? x : y, column = swaps ? y : x;
      if (from_right) column = photo->width - 1 - column;
      if (from_below) row = photo->height - 1 - row;
      memcpy(photo->pixels + 3 * (row * photo->width + column), old.pixels + 3 * (y * old.width + x), 3);
    }
  free(old.pixels);
  return 1;
}

static int read_jpeg(FILE *file, Photo *photo) {
  struct jpeg_decompress_struct jpeg = {0};
  Errors errors;
  volatile int done = 0, orientation = 1;
  jpeg.err = jpeg_std_error(&errors.errors);
  errors.errors.error_exit = fail_jpeg;
  errors.errors.output_message = ignore_jpeg;
  if (!setjmp(errors.jump)) {
    jpeg_create_decompress(&jpeg);
    jpeg_stdio_src(&jpeg, file);
    jpeg_save_markers(&jpeg, JPEG_APP0 + 1, 0xFFFF);
    jpeg_read_header(&jpeg, TRUE);
    jpeg.out_color_space = JCS_RGB;
    jpeg_start_decompress(&jpeg);
    orientation = orientation_of(&jpeg);
    if (allocate(photo, jpeg.output_height, jpeg.output_width)) {
      while (jpeg.output_scanline < jpeg.output_height) {
        JSAMPROW row = photo->pixels + (size_t)jpeg.output_scanline * jpeg.output_width * 3;
        jpeg_read_scanlines(&jpeg, &row, 1);
      }
      jpeg_finish_decompress(&jpeg);
      done = !errors.errors.num_warnings; /* a warning: the file is cut short or damaged */
    }
  }
  jpeg_destroy_decompress(&jpeg);
  return done && turn(photo, orientation);
}
#endif

uint8_t *photo_read(const char *path, size_t *height, size_t *width, const char **problem) {
  Photo photo = {0};
  uint8_t head[8] = {0};
  errno = 0;
  FILE *file = fopen(path, "rb");
  if (!file || !fread(head, 1, sizeof head, file)) {
    *problem = errno ? strerror(errno) : "an empty file";
    if (file) fclose(file);
    return NULL;
  }
  rewind(file);
  int done = 0;
  *problem = "a damaged image";
  if (head[0] == 'P' && (head[1] == '5' || head[1] == '6')) {
    done = read_ppm(file, &photo, head[1] == '6' ? 3 : 1);
  } else if (!memcmp(head, "\x89PNG", 4)) {
#ifdef WITH_PNG
    done = read_png(file, &photo);
#else
    *problem = "built without libpng";
#endif
  } else if (head[0] == 0xFF && head[1] == 0xD8) {
#ifdef WITH_JPEG
    done = read_jpeg(file, &photo);
#else
    *problem = "built without libjpeg";
#endif
  } else {
    *problem = "not PPM, PNG or JPEG";
  }
  fclose(file);
  if (!done) return free(photo.pixels), NULL;
  *height = photo.height, *width = photo.width;
  return photo.pixels;
}
