// What the provider needs to know about an operator, and helpers to read nodes.

#ifndef EDGETIE_OPERATOR_H
#define EDGETIE_OPERATOR_H

#include "kernels.h"
#include "onnxruntime.h"

#define RETURN_IF_ERROR(call)             \
  do {                                    \
    OrtStatus *status_of_call = (call);   \
    if (status_of_call) return status_of_call; \
  } while (0)

enum { MOST_AXES = 8, MOST_INPUTS = 16, MOST_OUTPUTS = 4, MOST_NODES = 20, STATE_BYTES = 72 };

// A tensor of a run. An absent input is not `present` and has no data and no axes.
typedef struct {
  void *data;
  int64_t sizes[MOST_AXES];
  size_t rank;
  int type;  // ELEMENT_...
  bool present;
} Tensor;

// An input of a node, before the session runs. Unknown sizes are -1.
typedef struct {
  bool present, constant, has_shape;
  int type;
  size_t rank;
  int64_t sizes[MOST_AXES];
} Value;

typedef struct {
  const OrtNode *node;
  size_t input_count, output_count;
  Value inputs[MOST_INPUTS];
  const OrtValueInfo *input_infos[MOST_INPUTS];
  const OrtValueInfo *outputs[MOST_OUTPUTS];  // NULL: nothing reads it
} Node;

// Nodes that an operator computes at once.
typedef struct {
  const struct Operator *operator_;
  const OrtNode *nodes[MOST_NODES];
  size_t node_count;
  const OrtValueInfo *inputs[MOST_INPUTS];    // NULL: absent
  const OrtValueInfo *outputs[MOST_OUTPUTS];  // NULL: nothing reads it
  _Alignas(8) unsigned char state[STATE_BYTES];
} Match;

// One run of an operator.
typedef struct {
  const Kernels *kernels;
  const Tensor *inputs[MOST_INPUTS];
  Tensor *outputs[MOST_OUTPUTS];  // NULL: nothing reads it
  size_t scratch_bytes;
  void *scratch;  // 64-byte aligned
  const Parallel *parallel;
} Run;

// Something that the provider computes: one node, or several at once.
typedef struct Operator {
  const char *domain, *name;  // of the node that it is found by
  int first_version, last_version;
  // Whether this node is computed right; everything else is left to ONNX Runtime. The match has the
  // node, its inputs and outputs; further nodes are added, the state is filled.
  bool (*match)(const Node *, Match *);
  // Check the inputs, set type and sizes of the outputs, and scratch_bytes. Of tensors that other
  // operators of the provider compute there is no data yet.
  OrtStatus *(*plan)(const void *state, Run *);
  void (*compute)(const void *state, const Run *);
} Operator;

extern const Operator *const operators[];  // ends with NULL

// Find what the provider computes among a graph's nodes. `matches` has room for as many; returns
// their number.
size_t find_matches(const OrtNode *const *nodes, size_t count, Match *matches);

// The status of a call whose failure only means "no".
bool succeeds(OrtStatus *);

bool is_operator(const OrtNode *, const char *domain, const char *name);

// Whether two values are the same one.
bool is_same(const OrtValueInfo *, const OrtValueInfo *);

// Describe a node; `fits` is false if it has more inputs or outputs than a Node has room for.
OrtStatus *describe_node(const OrtNode *, Node *, bool *fits);

// The only node that reads a value, if that is not an output of the graph; else NULL.
const OrtNode *only_consumer(const OrtValueInfo *);

// Whether only these nodes, MOST_NODES at most, read a value, which is not an output of the graph.
bool is_read_only_by(const OrtValueInfo *, const OrtNode *const *nodes, size_t count);

// The node that computes a value; NULL for inputs and constants.
const OrtNode *producer(const OrtValueInfo *);

// Make an error with a message in printf's form.
OrtStatus *fail(const char *format, ...);

// Attributes of a node, with the operator's default.
int64_t node_int(const Node *, const char *name, int64_t otherwise);
float node_float(const Node *, const char *name, float otherwise);
// Whether a text attribute, with the operator's default, has this value.
bool node_is(const Node *, const char *name, const char *otherwise, const char *value);
bool node_has(const Node *, const char *name);

// Data of a constant input before the session runs; no data if it is absent or not constant.
OrtStatus *node_constant(const Node *, size_t index, Tensor *);

// Read a tensor of a run. Fails if it has more axes than MOST_AXES.
OrtStatus *read_tensor(const OrtValue *, Tensor *);

size_t count_elements(const int64_t *sizes, size_t rank);

// Give an output of floats these sizes.
void set_sizes(Tensor *output, const int64_t *sizes, size_t rank);

// Run a task on some rows of `size` elements at a time: task(state, first, count).
typedef void RowTask(const void *state, size_t first, size_t count);
void for_each_row(const Parallel *, RowTask *, const void *state, size_t rows, size_t size);

#endif
