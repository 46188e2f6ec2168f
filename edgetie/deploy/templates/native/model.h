/* A language model and its tokenizer on ONNX Runtime's C API; what they are like is in app.h. */
#ifndef MODEL_H
#define MODEL_H

#include <stddef.h>
#include <stdint.h>

typedef struct Model Model;

/* A token as it comes: its text, which may end within a character, and whether it ends the answer.
   Returns whether to go on. */
typedef int (*Piece)(void *user, const char *text, size_t length, int64_t token, int ends);

/* Opens what lies below a folder: model/. NULL if that fails; model_problem() says why. */
Model *model_open(const char *folder);
void model_close(Model *model);

/* Answers a prompt in up to so many tokens, the likeliest each time. Returns whether it could. */
int model_answer(Model *model, const char *prompt, long most, Piece piece, void *user);

/* Why the last call in this thread failed. */
const char *model_problem(void);

#endif
