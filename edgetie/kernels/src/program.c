// Programs: a run first plans all steps (checks and sizes), then places what they compute in one
// block of memory, then computes.

#include "program.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "team.h"

// Numbers of values: inputs of the fused node, its outputs, then what only steps read.
enum { ABSENT = UINT32_MAX };

enum { SMALL_MEMORY = 32 << 10 };  // that a run takes from the stack

typedef struct {
  const char *text;
  uint32_t hash;
} Name;

typedef struct {
  const Operator *operator_;
  uint32_t inputs[MOST_INPUTS], outputs[MOST_OUTPUTS];
  _Alignas(8) unsigned char state[STATE_BYTES];
} Step;

typedef struct {
  OrtNodeComputeInfo runtime;
  const Kernels *kernels;
  OrtMemoryInfo *memory;
  Step *steps;
  size_t step_count, input_count, output_count, value_count;
  Name *names;           // of values, only while the program is made
  uint32_t *last_steps;  // that read a value
  bool *is_constant;     // of inputs
  // Constant inputs keep their place as long as the session lives. The first run reads them.
  Tensor *constants;
  atomic_bool has_constants;
  atomic_flag is_reading;
} Program;

// Making a program

// Fowler, Noll and Vo's hash (FNV-1a).
static Name make_name(const char *text) {
  uint32_t hash = 2166136261u;
  for (const char *c = text; *c; c++) hash = (hash ^ (unsigned char)*c) * 16777619u;
  return (Name){text, hash};
}

static OrtStatus *add_value(Program *program, const OrtValueInfo *value) {
  const char *text = "";
  if (value) RETURN_IF_ERROR(ORT(GetValueInfoName)(value, &text));
  program->names[program->value_count++] = make_name(text);
  return NULL;
}

static OrtStatus *find_value(const Program *program, const OrtValueInfo *value, uint32_t *number) {
  const char *text;
  *number = ABSENT;
  if (!value) return NULL;
  RETURN_IF_ERROR(ORT(GetValueInfoName)(value, &text));
  const Name name = make_name(text);
  for (size_t i = 0; i < program->value_count; i++)
    if (program->names[i].hash == name.hash && !strcmp(program->names[i].text, text))
      *number = (uint32_t)i;
  return NULL;
}

static OrtStatus *add_boundary(Program *program, const OrtNode *fused) {
  const size_t inputs = program->input_count, outputs = program->output_count;
  const OrtValueInfo **values = calloc(inputs + outputs + 1, sizeof *values);
  if (!values) return fail("edgetie: out of memory");
  OrtStatus *status = ORT(Node_GetInputs)(fused, values, inputs);
  if (!status) status = ORT(Node_GetOutputs)(fused, values + inputs, outputs);
  for (size_t i = 0; i < inputs && !status; i++)
    status = ORT(ValueInfo_IsConstantInitializer)(values[i], &program->is_constant[i]);
  for (size_t i = 0; i < inputs + outputs && !status; i++) status = add_value(program, values[i]);
  free(values);
  return status;
}

static OrtStatus *add_step(Program *program, const Match *match) {
  const uint32_t number = (uint32_t)program->step_count;
  Step *step = &program->steps[program->step_count++];
  step->operator_ = match->operator_;
  memcpy(step->state, match->state, sizeof step->state);
  for (size_t i = 0; i < MOST_INPUTS; i++) {
    RETURN_IF_ERROR(find_value(program, match->inputs[i], &step->inputs[i]));
    if (step->inputs[i] != ABSENT) program->last_steps[step->inputs[i]] = number;
    if (step->inputs[i] == ABSENT && match->inputs[i])
      return fail("edgetie: a step lacks an input");
  }
  for (size_t i = 0; i < MOST_OUTPUTS; i++) {
    RETURN_IF_ERROR(find_value(program, match->outputs[i], &step->outputs[i]));
    if (!match->outputs[i] || step->outputs[i] != ABSENT) continue;
    step->outputs[i] = (uint32_t)program->value_count;
    RETURN_IF_ERROR(add_value(program, match->outputs[i]));
  }
  return NULL;
}

static OrtStatus *fill_program(Program *program, const OrtGraph *graph, const OrtNode *fused,
                               size_t node_count, Match *matches) {
  const OrtNode **nodes = calloc(node_count + 1, sizeof *nodes);
  if (!nodes) return fail("edgetie: out of memory");
  OrtStatus *status = ORT(Graph_GetNodes)(graph, nodes, node_count);
  const size_t count = status ? 0 : find_matches(nodes, node_count, matches);
  free(nodes);
  size_t matched = 0;
  for (size_t i = 0; i < count; i++) matched += matches[i].node_count;
  if (!status && matched != node_count) status = fail("edgetie: the nodes of a graph changed");
  if (!status) status = add_boundary(program, fused);
  for (size_t i = 0; i < count && !status; i++) status = add_step(program, &matches[i]);
  return status;
}

static OrtStatus *compute(OrtNodeComputeInfo *, void *state, OrtKernelContext *);

static OrtStatus *return_self(OrtNodeComputeInfo *self, void *context, void **state) {
  (void)context;
  *state = self;
  return NULL;
}

static void keep_self(OrtNodeComputeInfo *self, void *state) { (void)self, (void)state; }

OrtStatus *create_program(const OrtGraph *graph, const OrtNode *fused, OrtNodeComputeInfo **out) {
  size_t nodes;
  Program *program = calloc(1, sizeof *program);
  if (!program) return fail("edgetie: out of memory");
  program->runtime = (OrtNodeComputeInfo){API_VERSION, return_self, compute, keep_self};
  program->kernels = select_kernels();
  *out = &program->runtime;
  RETURN_IF_ERROR(ORT(Graph_GetNumNodes)(graph, &nodes));
  RETURN_IF_ERROR(ORT(Node_GetNumInputs)(fused, &program->input_count));
  RETURN_IF_ERROR(ORT(Node_GetNumOutputs)(fused, &program->output_count));
  const size_t values = program->input_count + program->output_count + nodes * MOST_OUTPUTS;
  Match *matches = calloc(nodes + 1, sizeof *matches);
  program->steps = calloc(nodes + 1, sizeof *program->steps);
  program->names = calloc(values, sizeof *program->names);
  program->last_steps = calloc(values, sizeof *program->last_steps);
  program->is_constant = calloc(program->input_count + 1, sizeof *program->is_constant);
  program->constants = calloc(program->input_count + 1, sizeof *program->constants);
  OrtStatus *status = NULL;
  if (!matches || !program->steps || !program->names || !program->last_steps ||
      !program->is_constant || !program->constants)
    status = fail("edgetie: out of memory");
  if (!status) status = fill_program(program, graph, fused, nodes, matches);
  if (!status)
    status = ORT(CreateCpuMemoryInfo)(ORT_ARENA_ALLOCATOR, ORT_DEFAULT_MEMORY, &program->memory);
  free(matches);
  free(program->names);
  program->names = NULL;
  return status;
}

void release_program(OrtNodeComputeInfo *info) {
  Program *program = (Program *)info;
  if (!program) return;
  if (program->memory) ORT(ReleaseMemoryInfo)(program->memory);
  free(program->steps);
  free(program->last_steps);
  free(program->is_constant);
  free(program->constants);
  free(program);
}

// Running a program

// Memory that is in use while steps are planned, in the order of offsets.
typedef struct {
  size_t offset, bytes;
  uint32_t last_step;
} Block;

typedef struct {
  const Program *program;
  OrtKernelContext *context;
  Tensor *tensors;  // of values, except constants
  Run *runs;        // of steps
  size_t *offsets;  // of values that only steps read
  size_t *scratch;  // of steps
  Block *blocks;
  size_t block_count, bytes;
} Execution;

// Find room until a step is done.
static size_t reserve(Execution *execution, size_t bytes, uint32_t last_step) {
  size_t at = 0, offset = 0;
  bytes = (bytes + 63) / 64 * 64;
  for (; at < execution->block_count; at++) {
    const Block *block = &execution->blocks[at];
    if (block->offset - offset >= bytes) break;
    offset = block->offset + block->bytes;
  }
  memmove(execution->blocks + at + 1, execution->blocks + at,
          (execution->block_count++ - at) * sizeof(Block));
  execution->blocks[at] = (Block){offset, bytes, last_step};
  if (offset + bytes > execution->bytes) execution->bytes = offset + bytes;
  return offset;
}

static void release_blocks(Execution *execution, uint32_t step) {
  size_t kept = 0;
  for (size_t i = 0; i < execution->block_count; i++)
    if (execution->blocks[i].last_step > step)
      execution->blocks[kept++] = execution->blocks[i];
  execution->block_count = kept;
}

static OrtStatus *read_inputs(Execution *execution) {
  const Program *program = execution->program;
  const OrtValue *value = NULL;
  for (size_t i = 0; i < program->input_count; i++) {
    if (program->is_constant[i]) continue;
    RETURN_IF_ERROR(ORT(KernelContext_GetInput)(execution->context, i, &value));
    if (value) RETURN_IF_ERROR(read_tensor(value, &execution->tensors[i]));
  }
  return NULL;
}

static OrtStatus *read_constants(Program *program, const OrtKernelContext *context) {
  OrtStatus *status = NULL;
  if (atomic_load_explicit(&program->has_constants, memory_order_acquire)) return NULL;
  while (atomic_flag_test_and_set_explicit(&program->is_reading, memory_order_acquire)) {
  }
  const bool is_done = atomic_load_explicit(&program->has_constants, memory_order_relaxed);
  for (size_t i = 0; i < program->input_count && !is_done && !status; i++) {
    const OrtValue *value = NULL;
    if (!program->is_constant[i]) continue;
    status = ORT(KernelContext_GetInput)(context, i, &value);
    if (!status) status = read_tensor(value, &program->constants[i]);
  }
  if (!status) atomic_store_explicit(&program->has_constants, true, memory_order_release);
  atomic_flag_clear_explicit(&program->is_reading, memory_order_release);
  return status;
}

static size_t bytes_of(const Tensor *tensor) {
  const size_t size = tensor->type == ELEMENT_FLOAT ? sizeof(float) : 1;
  return count_elements(tensor->sizes, tensor->rank) * size;
}

static OrtStatus *plan_output(Execution *execution, uint32_t value, uint32_t step) {
  const Program *program = execution->program;
  Tensor *tensor = &execution->tensors[value];
  OrtValue *output = NULL;
  if (value >= program->input_count + program->output_count) {
    const uint32_t last = program->last_steps[value];
    execution->offsets[value] = reserve(execution, bytes_of(tensor), last > step ? last : step);
    return NULL;
  }
  RETURN_IF_ERROR(ORT(KernelContext_GetOutput)(execution->context, value - program->input_count,
                                               tensor->sizes, tensor->rank, &output));
  return ORT(GetTensorMutableData)(output, &tensor->data);
}

static OrtStatus *plan_step(Execution *execution, uint32_t number) {
  static const Tensor absent;
  const Program *program = execution->program;
  const Step *step = &program->steps[number];
  Run *run = &execution->runs[number];
  run->kernels = program->kernels;
  for (size_t i = 0; i < MOST_INPUTS; i++) {
    const uint32_t value = step->inputs[i];
    run->inputs[i] = value == ABSENT ? &absent : &execution->tensors[value];
    if (value < program->input_count && program->is_constant[value])
      run->inputs[i] = &program->constants[value];
  }
  for (size_t i = 0; i < MOST_OUTPUTS; i++)
    run->outputs[i] = step->outputs[i] == ABSENT ? NULL : &execution->tensors[step->outputs[i]];
  RETURN_IF_ERROR(step->operator_->plan(step->state, run));
  for (size_t i = 0; i < MOST_OUTPUTS; i++)
    if (run->outputs[i]) RETURN_IF_ERROR(plan_output(execution, step->outputs[i], number));
  execution->scratch[number] = reserve(execution, run->scratch_bytes, number);
  release_blocks(execution, number);
  return NULL;
}

static OrtStatus *plan(Execution *execution) {
  RETURN_IF_ERROR(read_inputs(execution));
  for (uint32_t i = 0; i < execution->program->step_count; i++)
    RETURN_IF_ERROR(plan_step(execution, i));
  return NULL;
}

static void place(Execution *execution, char *memory) {
  const Program *program = execution->program;
  for (size_t i = program->input_count + program->output_count; i < program->value_count; i++)
    execution->tensors[i].data = memory + execution->offsets[i];
  for (size_t i = 0; i < program->step_count; i++)
    execution->runs[i].scratch = memory + execution->scratch[i];
}

static void run_steps(void *state, const Parallel *parallel) {
  Execution *execution = state;
  for (size_t i = 0; i < execution->program->step_count; i++) {
    const Step *step = &execution->program->steps[i];
    execution->runs[i].parallel = parallel;
    step->operator_->compute(step->state, &execution->runs[i]);
  }
}

static void run_on_session(void *context, void (*task)(void *, size_t), void *state,
                           size_t count) {
  OrtStatus *status = ORT(KernelContext_ParallelFor)(context, task, count, 0, state);
  if (status) {  // it has run nothing
    ORT(ReleaseStatus)(status);
    for (size_t i = 0; i < count; i++) task(state, i);
  }
}

// Allocate zeroed arrays for one run in one piece, which `tensors` points to.
static bool allocate(Execution *execution) {
  const Program *program = execution->program;
  const size_t values = program->value_count, steps = program->step_count;
  char *memory = calloc(1, values * (sizeof(Tensor) + sizeof(size_t) + sizeof(Block)) +
                               steps * (sizeof(Run) + sizeof(size_t) + sizeof(Block)));
  if (!memory) return false;
  execution->tensors = (Tensor *)memory;
  execution->runs = (Run *)(execution->tensors + values);
  execution->offsets = (size_t *)(execution->runs + steps);
  execution->scratch = execution->offsets + values;
  execution->blocks = (Block *)(execution->scratch + steps);
  return true;
}

static void run_placed(Execution *execution, char *memory) {
  const Parallel threads = {execution->context, run_on_session};
  place(execution, memory + (64 - (uintptr_t)memory % 64) % 64);
  if (execution->program->step_count > 1)
    run_as_team(&threads, run_steps, execution);
  else
    run_steps(execution, &threads);
}

static OrtStatus *execute(Execution *execution) {
  char small[SMALL_MEMORY];
  OrtAllocator *allocator = NULL;
  const size_t bytes = execution->bytes + 64;
  if (bytes <= sizeof small) {
    run_placed(execution, small);
    return NULL;
  }
  RETURN_IF_ERROR(ORT(KernelContext_GetAllocator)(execution->context, execution->program->memory,
                                                  &allocator));
  char *memory = allocator->Alloc(allocator, bytes);
  if (memory) {
    run_placed(execution, memory);
    allocator->Free(allocator, memory);
  }
  ORT(ReleaseAllocator)(allocator);
  return memory ? NULL : fail("edgetie: out of memory");
}

static OrtStatus *compute(OrtNodeComputeInfo *self, void *state, OrtKernelContext *context) {
  Execution execution = {.program = state, .context = context};
  (void)self;
  RETURN_IF_ERROR(read_constants(state, context));
  if (!allocate(&execution)) return fail("edgetie: out of memory");
  OrtStatus *status = plan(&execution);
  if (!status) status = execute(&execution);
  free(execution.tensors);
  return status;
}
