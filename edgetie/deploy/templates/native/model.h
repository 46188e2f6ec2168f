/* A language model and its tokenizer on ONNX Runtime's C API; app.h contains their settings. */
#ifndef MODEL_H
#define MODEL_H

#include <stddef.h>
#include <stdint.h>

typedef struct Model Model;

/* Called for each token: its text, which may end within a character, and whether it ends the answer.
   Returns whether to go on. */
typedef int (*Piece)(void *user, const char *text, size_t length, int64_t token, int ends);

/* Opens the model in the subfolder model/. NULL if that fails; model_problem() returns the reason. */
Model *model_open(const char *folder);
void model_close(Model *model);

/* Answers a prompt with at most that many tokens, always the most likely one. Returns 0 if that
   fails. */
int model_answer(Model *model, const char *prompt, long most, Piece piece, void *user);

/* The execution provider that runs the model: edgetie's and its nodes, or cpu, ONNX Runtime's own, and
   why. */
const char *model_provider(const Model *model);

/* The reason why the last call in this thread failed. */
const char *model_problem(void);

#endif
