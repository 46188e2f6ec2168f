// What the provider needs to know about an operator, and helpers to read nodes and tensors.

#ifndef EDGETIE_OPERATOR_H
#define EDGETIE_OPERATOR_H

#include "kernels.h"
#include "onnxruntime.h"

#define RETURN_IF_ERROR(call)             \
  do {                                    \
    OrtStatus *status_of_call = (call);   \
    if (status_of_call) return status_of_call; \
  } while (0)

// The elements of one tensor of a run. `data` is NULL if an optional input is absent.
typedef struct {
  const void *data;
  const int64_t *sizes;
  size_t rank;
  int type;  // ELEMENT_...
} Tensor;

// An input or output of a node, before the session runs. Unknown sizes are -1.
typedef struct {
  bool present, constant, has_shape;
  int type;
  size_t rank;
  int64_t sizes[8];
} Value;

enum { MOST_INPUTS = 16, NO_INPUT = MOST_INPUTS, MOST_FUSED = 24 };

typedef struct {
  const OrtNode *node;
  size_t input_count, output_count;
  Value inputs[MOST_INPUTS];
  const OrtValueInfo *input_infos[MOST_INPUTS];
  bool outputs[MOST_INPUTS];  // which are read
} Node;

// A kernel of one node: the runtime's structure, followed by what Compute needs.
typedef struct Kernel {
  OrtKernelImpl runtime;
  const struct Operator *operator_;
  const Kernels *kernels;
  OrtAllocator *allocator;
  void *state;  // `state_size` bytes that `create` fills
} Kernel;

// One operator that the provider takes.
typedef struct Operator {
  const char *domain, *name;
  int first_version, last_version;
  const char *const *float_types;  // type parameters that must be float; ends with NULL
  // Say whether this node is computed right; everything else is left to ONNX Runtime.
  bool (*supports)(const Node *);
  size_t state_size;
  // Read attributes and constants of the node into the state.
  OrtStatus *(*create)(void *state, const OrtKernelInfo *);
  OrtStatus *(*compute)(const Kernel *, const void *state, OrtKernelContext *);
} Operator;

// Several nodes that run as one.
typedef struct {
  const char *domain, *name;  // operator of the node that they are found by
  // Find the nodes of which `node` is one; returns their number, 0 if they are not all there.
  size_t (*find)(const Node *node, const OrtNode *nodes[MOST_FUSED]);
  // Make what computes them. `node` is one of a graph that has these nodes only and runs as `fused`.
  OrtStatus *(*compile)(const Node *node, const Node *fused, OrtNodeComputeInfo **);
} Fusion;

// The state of a run of several nodes is what was compiled, and lives as long.
OrtStatus *return_self(OrtNodeComputeInfo *, void *context, void **state);
void keep_self(OrtNodeComputeInfo *, void *state);

extern const Operator *const operators[];  // ends with NULL
extern const Fusion *const fusions[];      // ends with NULL

// The status of a call whose failure only means "no".
bool succeeds(OrtStatus *);

bool is_operator(const OrtNode *, const char *domain, const char *name);

// Describe a node; `fits` is false if it has more inputs or outputs than MOST_INPUTS.
OrtStatus *describe_node(const OrtNode *, Node *, bool *fits);

// The only node that reads a value, if that is not an output of the graph; else NULL.
const OrtNode *only_consumer(const OrtValueInfo *);

// The node that computes a value; NULL for inputs and constants.
const OrtNode *producer(const OrtValueInfo *);

// Make an error with a message in printf's form.
OrtStatus *fail(const char *format, ...);

// Attributes of a node or kernel, with the operator's default.
int64_t node_int(const Node *, const char *name, int64_t otherwise);
float node_float(const Node *, const char *name, float otherwise);
// Whether a text attribute, with the operator's default, has this value.
bool node_is(const Node *, const char *name, const char *otherwise, const char *value);
bool node_has(const Node *, const char *name);
int64_t info_int(const OrtKernelInfo *, const char *name, int64_t otherwise);
float info_float(const OrtKernelInfo *, const char *name, float otherwise);

// Data of a constant input before the session runs; NULL if it is absent or not constant.
OrtStatus *node_constant(const Node *, size_t index, Tensor *);
OrtStatus *constant_input(const OrtKernelInfo *, size_t index, Tensor *);

// Tensors of a run.
OrtStatus *get_input(const OrtKernelContext *, size_t index, Tensor *);
OrtStatus *get_output(OrtKernelContext *, size_t index, const int64_t *sizes, size_t rank,
                      void **data);
size_t count_elements(const int64_t *sizes, size_t rank);

// The session's threads.
Parallel session_threads(OrtKernelContext *);

// Memory for the time of one call of Compute, 64-byte aligned; Free takes `to_release`.
void *get_scratch(OrtAllocator *, size_t bytes, void **to_release);

// Up to this many bytes Compute takes from the stack.
enum { SMALL_SCRATCH = 24 << 10 };

#endif
