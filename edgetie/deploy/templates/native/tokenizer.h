/* A byte-level BPE tokenizer that reads the tables in tokenizer.bin. */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

typedef struct Tokenizer Tokenizer;

/* NULL if the file cannot be read or is not valid. */
Tokenizer *tokenizer_open(const char *path);
void tokenizer_close(Tokenizer *tokenizer);

/* The *count tokens of so many bytes of UTF-8, to be freed. NULL if there is not enough memory. */
int64_t *tokenizer_encode(const Tokenizer *tokenizer, const char *text, size_t length, size_t *count);

/* The *length bytes of a token; none for control tokens. A character may consist of several
   tokens. */
const char *tokenizer_text(const Tokenizer *tokenizer, int64_t token, size_t *length);

#endif
