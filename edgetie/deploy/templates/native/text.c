#include "text.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

int text_add(Text *text, const char *bytes, size_t length) {
  if (text->length + length >= text->capacity) {
    size_t capacity = 2 * (text->length + length) + 64;
    char *moved = realloc(text->bytes, capacity);
    if (!moved) return 0;
    text->bytes = moved, text->capacity = capacity;
  }
  memcpy(text->bytes + text->length, bytes, length);
  text->bytes[text->length += length] = 0;
  return 1;
}

void text_trim(Text *text) {
  size_t start = 0, end = text->length;
  if (!text->bytes) return;
  while (start < end && isspace((unsigned char)text->bytes[start])) start++;
  while (end > start && isspace((unsigned char)text->bytes[end - 1])) end--;
  memmove(text->bytes, text->bytes + start, end - start);
  text->bytes[text->length = end - start] = 0;
}

/* Bytes at the end that begin a character and do not complete it. */
static size_t unfinished(const char *bytes, size_t length) {
  for (size_t back = 1; back <= 3 && back <= length; back++) {
    unsigned char byte = (unsigned char)bytes[length - back];
    size_t size = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1;
    if (size > 1) return size > back ? back : 0;
    if (byte < 0x80) return 0;
  }
  return 0;
}

/* The place of a stop string in length bytes, or length. */
static size_t find(const char *bytes, size_t length, const char *stop) {
  size_t size = strlen(stop);
  for (size_t place = 0; place + size <= length; place++)
    if (!memcmp(bytes + place, stop, size)) return place;
  return length;
}

size_t text_certain(const Text *text, size_t start, const char *stop_strings, int *stopped) {
  size_t length = text->length - start;
  const char *bytes = length ? text->bytes + start : "";
  size_t end = length, pending = unfinished(bytes, length);
  for (const char *stop = stop_strings; *stop; stop += strlen(stop) + 1) {
    size_t place = find(bytes, length, stop);
    if (place < end) end = place;
    for (size_t size = pending + 1; size < strlen(stop) && size <= length; size++)
      if (!memcmp(bytes + length - size, stop, size)) pending = size;
  }
  *stopped = end < length;
  return *stopped ? end : length - pending;
}
