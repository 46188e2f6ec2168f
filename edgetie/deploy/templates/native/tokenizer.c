/* Byte-level BPE as in GPT-2. Text is cut at added tokens, then into words by the pattern
   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+, and the bytes of each
   word are merged, the pair of the lowest rank first. */
#define _DEFAULT_SOURCE
#include "tokenizer.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TOKENS, MERGES, ADDED, LETTERS, NUMBERS, SPACES, DIGITS, COUNTS };
enum { OTHER, LETTER, NUMBER, SPACE };

struct Tokenizer {
  void *file;
  size_t size;
  uint32_t counts[COUNTS];
  const uint32_t *bytes, *merges, *added, *ranges[3], *starts;
  const char *text;
};

typedef struct {
  int64_t *tokens;
  size_t count, capacity;
  int failed;
} List;

static void push(List *list, int64_t token) {
  if (list->count == list->capacity) {
    size_t capacity = list->capacity ? list->capacity * 2 : 256;
    int64_t *tokens = realloc(list->tokens, capacity * sizeof *tokens);
    if (!tokens) {
      list->failed = 1;
      return;
    }
    list->tokens = tokens, list->capacity = capacity;
  }
  list->tokens[list->count++] = token;
}

Tokenizer *tokenizer_open(const char *path) {
  int file = open(path, O_RDONLY);
  struct stat about;
  Tokenizer *t = calloc(1, sizeof *t);
  size_t head = 4 + COUNTS * sizeof(uint32_t);
  if (file < 0 || !t || fstat(file, &about) || about.st_size < (off_t)head) goto bad;
  t->size = (size_t)about.st_size;
  t->file = mmap(NULL, t->size, PROT_READ, MAP_PRIVATE, file, 0);
  if (t->file == MAP_FAILED) t->file = NULL;
  if (!t->file || memcmp(t->file, "EDT1", 4)) goto bad;
  memcpy(t->counts, (char *)t->file + 4, sizeof t->counts);
  uint64_t words = 257 + 4ull * t->counts[MERGES] + 2ull * t->counts[ADDED] + t->counts[TOKENS];
  for (int i = 0; i < 3; i++) words += 2ull * t->counts[LETTERS + i];
  if (head + words * sizeof(uint32_t) > t->size) goto bad;
  const uint32_t *next = (const uint32_t *)((char *)t->file + head);
  t->bytes = next, next += 256;
  t->merges = next, next += 4 * (size_t)t->counts[MERGES];
  t->added = next, next += 2 * (size_t)t->counts[ADDED];
  for (int i = 0; i < 3; i++) t->ranges[i] = next, next += 2 * (size_t)t->counts[LETTERS + i];
  t->starts = next, next += (size_t)t->counts[TOKENS] + 1;
  t->text = (const char *)next;
  if (head + words * sizeof(uint32_t) + t->starts[t->counts[TOKENS]] > t->size) goto bad;
  close(file);
  return t;
bad:
  if (file >= 0) close(file);
  tokenizer_close(t);
  return NULL;
}

void tokenizer_close(Tokenizer *t) {
  if (t && t->file) munmap(t->file, t->size);
  free(t);
}

static size_t length_of(const Tokenizer *t, uint32_t token) {
  return t->starts[token + 1] - t->starts[token];
}

const char *tokenizer_text(const Tokenizer *t, int64_t token, size_t *length) {
  *length = 0;
  if (token < 0 || token >= t->counts[TOKENS]) return "";
  for (uint32_t i = 0; i < t->counts[ADDED]; i++)
    if (t->added[2 * i] == token && t->added[2 * i + 1]) return "";
  *length = length_of(t, (uint32_t)token);
  return t->text + t->starts[token];
}

/* The merge of a pair of tokens, with its rank and its token; NULL if there is none. */
static const uint32_t *find_merge(const Tokenizer *t, int64_t left, int64_t right) {
  size_t low = 0, high = t->counts[MERGES];
  while (low < high) {
    size_t middle = (low + high) / 2;
    const uint32_t *merge = t->merges + 4 * middle;
    if (merge[0] == left && merge[1] == right) return merge;
    if (merge[0] < left || (merge[0] == left && merge[1] < right)) low = middle + 1;
    else high = middle;
  }
  return NULL;
}

static void add_word(const Tokenizer *t, List *list, const uint8_t *word, size_t length) {
  size_t first = list->count;
  for (size_t i = 0; i < length; i++)
    if (t->bytes[word[i]] != UINT32_MAX) push(list, t->bytes[word[i]]);
  if (list->failed) return;
  for (;;) {
    const uint32_t *best = NULL;
    size_t index = 0;
    for (size_t i = first; i + 1 < list->count; i++) {
      const uint32_t *merge = find_merge(t, list->tokens[i], list->tokens[i + 1]);
      if (merge && (!best || merge[2] < best[2])) best = merge, index = i;
    }
    if (!best) return;
    list->tokens[index] = best[3];
    memmove(list->tokens + index + 1, list->tokens + index + 2,
            (list->count - index - 2) * sizeof *list->tokens);
    list->count--;
  }
}

/* The code point at text and its number of bytes; a byte that is not UTF-8 stands for itself. */
static uint32_t decode(const uint8_t *text, size_t left, size_t *bytes) {
  uint32_t first = text[0];
  size_t more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : first >= 0xC0 ? 1 : 0;
  *bytes = 1;
  if (!more || more >= left) return first;
  uint32_t point = first & (0x3Fu >> more);
  for (size_t i = 1; i <= more; i++) {
    if ((text[i] & 0xC0) != 0x80) return first;
    point = point << 6 | (text[i] & 0x3F);
  }
  *bytes = more + 1;
  return point;
}

static int kind_of(const Tokenizer *t, uint32_t point) {
  for (int kind = 0; kind < 3; kind++) {
    size_t low = 0, high = t->counts[LETTERS + kind];
    const uint32_t *ranges = t->ranges[kind];
    while (low < high) {
      size_t middle = (low + high) / 2;
      if (point < ranges[2 * middle]) high = middle;
      else if (point > ranges[2 * middle + 1]) low = middle + 1;
      else return LETTER + kind;
    }
  }
  return OTHER;
}

/* The number of bytes, at most left, whose characters are all of one kind. */
static size_t run_of(const Tokenizer *t, const uint8_t *text, size_t left, int kind, size_t *last) {
  size_t length = 0, bytes;
  while (length < left) {
    uint32_t point = decode(text + length, left - length, &bytes);
    if (kind_of(t, point) != kind) break;
    *last = bytes;
    length += bytes;
  }
  return length;
}

static size_t contraction(const uint8_t *text, size_t left) {
  static const char *const endings[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
  for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
    size_t length = strlen(endings[i]);
    if (length <= left && !memcmp(text, endings[i], length)) return length;
  }
  return 0;
}

/* Adds the words of text without added tokens and, if each digit is a token, without digits. */
static void add_words(const Tokenizer *t, List *list, const uint8_t *text, size_t left) {
  while (left) {
    size_t bytes, last = 0, length = contraction(text, left);
    if (!length) {
      size_t space = text[0] == ' ' && left > 1;
      int kind = kind_of(t, decode(text + space, left - space, &bytes));
      if (kind == SPACE) {
        length = run_of(t, text, left, SPACE, &last);
        if (length < left && length > last) length -= last; /* the last space belongs to the next word */
      } else {
        length = space + run_of(t, text + space, left - space, kind, &last);
      }
    }
    add_word(t, list, text, length);
    text += length, left -= length;
  }
}

static void add_part(const Tokenizer *t, List *list, const uint8_t *text, size_t left) {
  size_t start = 0, at = 0, bytes;
  while (t->counts[DIGITS] && at < left) {
    if (kind_of(t, decode(text + at, left - at, &bytes)) == NUMBER) {
      add_words(t, list, text + start, at - start);
      add_words(t, list, text + at, bytes);
      start = at + bytes;
    }
    at += bytes;
  }
  add_words(t, list, text + start, left - start);
}

int64_t *tokenizer_encode(const Tokenizer *t, const char *bytes, size_t left, size_t *count) {
  const uint8_t *text = (const uint8_t *)bytes;
  size_t start = 0, at = 0;
  List list = {0};
  while (at < left) {
    uint32_t match = t->counts[ADDED];
    for (uint32_t i = 0; i < t->counts[ADDED] && match == t->counts[ADDED]; i++) {
      uint32_t token = t->added[2 * i];
      size_t length = length_of(t, token);
      if (length && length <= left - at && !memcmp(text + at, t->text + t->starts[token], length))
        match = i;
    }
    if (match == t->counts[ADDED]) {
      at++;
      continue;
    }
    add_part(t, &list, text + start, at - start);
    push(&list, t->added[2 * match]);
    at = start = at + length_of(t, t->added[2 * match]);
  }
  add_part(t, &list, text + start, left - start);
  madvise(t->file, t->size, MADV_DONTNEED); /* the kernel reads it again if needed */
  *count = list.count;
  if (!list.failed) return list.tokens ? list.tokens : calloc(1, sizeof *list.tokens);
  free(list.tokens);
  return NULL;
}
