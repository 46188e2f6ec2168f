/* A text that grows. */
#ifndef TEXT_H
#define TEXT_H

#include <stddef.h>

typedef struct {
  char *bytes; /* ended by \0; NULL if nothing was added */
  size_t length, capacity;
} Text;

/* Returns 0 if there is not enough memory. */
int text_add(Text *text, const char *bytes, size_t length);

/* Removes spaces at both ends. */
void text_trim(Text *text);

/* How many bytes are certain from start on: up to a stop string, if there is one (*stopped), or up to
   what may become one or is not yet a whole character. */
size_t text_certain(const Text *text, size_t start, const char *stop_strings, int *stopped);

#endif
