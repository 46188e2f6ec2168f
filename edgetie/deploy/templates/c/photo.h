/* Reads image files: PPM and PGM, and PNG and JPEG if it is built with libpng and libjpeg. */
#ifndef PHOTO_H
#define PHOTO_H

#include <stddef.h>
#include <stdint.h>

/* RGB pixels, row by row, to be freed; rotated as EXIF metadata says. Transparent pixels are blended
   with white. NULL if that fails; *problem is the reason. */
uint8_t *photo_read(const char *path, size_t *height, size_t *width, const char **problem);

#endif
