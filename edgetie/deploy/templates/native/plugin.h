/* edgetie's execution provider: a library in C, built from kernels/, that runs nodes of a model and
   reads weights where their file is mapped. */
#ifndef PLUGIN_H
#define PLUGIN_H

#include <stddef.h>
#if defined(__APPLE__) && __has_include(<onnxruntime/onnxruntime_c_api.h>) /* in the framework */
#include <onnxruntime/onnxruntime_c_api.h>
#else
#include "onnxruntime_c_api.h"
#endif

/* Lets the provider run nodes of the session that these options start. Returns 0 if it cannot, and
   writes the reason. */
int plugin_add(const OrtApi *ort, OrtEnv *env, OrtSessionOptions *options, char *why, size_t size);

/* The nodes of a session with the provider: those that it runs, and all. Both are 0 for an .ort file,
   of which ONNX Runtime keeps no record. */
void plugin_nodes(const OrtApi *ort, const OrtSession *session, size_t *own, size_t *all);

#endif
