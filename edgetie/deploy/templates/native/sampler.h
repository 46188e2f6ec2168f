/* Selects the next token, as edgetie generate does. */
#ifndef SAMPLER_H
#define SAMPLER_H

#include "model.h"

typedef struct Sampler Sampler;

/* NULL if an option is out of range, or there is not enough memory; *problem is the reason. */
Sampler *sampler_open(const Options *options, size_t vocabulary, const char **problem);
void sampler_close(Sampler *sampler);

/* Remembers a token that occurs, for the repetition penalty. */
void sampler_see(Sampler *sampler, int64_t token);

/* Selects a token by the logits of all, which are changed. */
int64_t sampler_select(Sampler *sampler, float *logits);

#endif
