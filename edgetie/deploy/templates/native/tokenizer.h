/* A byte-level BPE tokenizer over the tables of tokenizer.bin. */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

typedef struct Tokenizer Tokenizer;

/* NULL if the file cannot be read or is none. */
Tokenizer *tokenizer_open(const char *path);
void tokenizer_close(Tokenizer *tokenizer);

/* Tokens of UTF-8 text; *count of them, to be freed. NULL without memory. */
int64_t *tokenizer_encode(const Tokenizer *tokenizer, const char *text, size_t *count);

/* The bytes of a token, *length of them; none of tokens that only steer the model. A character may
   be spread over several tokens. */
const char *tokenizer_text(const Tokenizer *tokenizer, int64_t token, size_t *length);

#endif
