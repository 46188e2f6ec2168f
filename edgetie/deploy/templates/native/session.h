/* A graph that ONNX Runtime runs, on edgetie's execution provider where it can. */
#ifndef SESSION_H
#define SESSION_H

#include <stdint.h>

#include "plugin.h"

typedef struct {
  OrtEnv *env;
  OrtSession *session;
  OrtMemoryInfo *cpu;
  void *file; /* an .ort file, mapped */
  size_t bytes;
  int in_file; /* products read the weights in the file, which are not packed */
  char provider[300];
} Session;

extern const OrtApi *session_api;

/* Opens a graph. Returns 0 if that fails; session_problem() returns the reason. */
int session_open(Session *session, const char *path);
void session_close(Session *session);

/* Binds memory as the input or output of that name. Returns 0 if that fails. */
int session_bind(const Session *session, OrtIoBinding *binding, int output, const char *name,
                 void *data, size_t size, const int64_t *shape, size_t rank, int type);

/* Releases pages that only the start needed: those of the weights' file, which ONNX Runtime has
   packed into its own memory, and optionally those of its code. The kernel reads a page again if it
   is needed again. */
void session_release(const Session *session, int code_too);

/* Whether a call of ONNX Runtime failed; keeps the reason. */
int session_failed(OrtStatus *status);

/* Keeps the reason of a failure in this thread, in two parts. */
void session_fail(const char *what, const char *why);
const char *session_problem(void);

#endif
