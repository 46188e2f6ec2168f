// The library's entry points, the factory, the execution provider and its kernels' registry.

#include <stdlib.h>
#include <string.h>

#include "operator.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

static const char NAME[] = "EdgetieExecutionProvider";
static const char VENDOR[] = "edgetie";
#ifndef EDGETIE_VERSION
#define EDGETIE_VERSION "0.0.0"
#endif

typedef struct {
  OrtEpFactory runtime;
  OrtKernelRegistry *registry;
} Factory;

typedef struct {
  OrtEp runtime;
  const Factory *factory;
} Provider;

// Kernels

static OrtStatus *compute(OrtKernelImpl *self, OrtKernelContext *context) {
  const Kernel *kernel = (const Kernel *)self;
  return kernel->operator_->compute(kernel, kernel->state, context);
}

static void release_kernel(OrtKernelImpl *self) {
  Kernel *kernel = (Kernel *)self;
  if (kernel->allocator) ORT(ReleaseAllocator)(kernel->allocator);
  free(kernel->state);
  free(kernel);
}

static OrtStatus *create_kernel(void *operator_, const OrtKernelInfo *info, OrtKernelImpl **out) {
  const Operator *operator = operator_;
  Kernel *kernel = calloc(1, sizeof *kernel);
  void *state = calloc(1, operator->state_size);
  if (!kernel || !state) {
    free(kernel);
    free(state);
    return fail("edgetie: out of memory");
  }
  kernel->runtime = (OrtKernelImpl){
      .version = API_VERSION, .Compute = compute, .Release = release_kernel};
  kernel->operator_ = operator;
  kernel->kernels = select_kernels();
  kernel->state = state;
  OrtStatus *status = ORT(KernelInfoGetAllocator)(info, 0, &kernel->allocator);
  if (!status) status = operator->create(state, info);
  if (status) {
    release_kernel(&kernel->runtime);
    return status;
  }
  *out = &kernel->runtime;
  return NULL;
}

static OrtStatus *add_kernel(OrtKernelRegistry *registry, OrtKernelDefBuilder *builder,
                             const Operator *operator) {
  const OrtDataType *type = NULL;
  OrtKernelDef *definition = NULL;
  RETURN_IF_ERROR(ORT_EP(GetTensorDataType)(ELEMENT_FLOAT, &type));
  RETURN_IF_ERROR(ORT_EP(KernelDefBuilder_SetOperatorType)(builder, operator->name));
  RETURN_IF_ERROR(ORT_EP(KernelDefBuilder_SetDomain)(builder, operator->domain));
  RETURN_IF_ERROR(ORT_EP(KernelDefBuilder_SetSinceVersion)(builder, operator->first_version,
                                                           operator->last_version));
  RETURN_IF_ERROR(ORT_EP(KernelDefBuilder_SetExecutionProvider)(builder, NAME));
  for (const char *const *parameter = operator->float_types; *parameter; parameter++)
    RETURN_IF_ERROR(ORT_EP(KernelDefBuilder_AddTypeConstraint)(builder, *parameter, &type, 1));
  RETURN_IF_ERROR(ORT_EP(KernelDefBuilder_Build)(builder, &definition));
  OrtStatus *status =
      ORT_EP(KernelRegistry_AddKernel)(registry, definition, create_kernel, (void *)operator);
  ORT_EP(ReleaseKernelDef)(definition);
  return status;
}

static OrtStatus *fill_registry(OrtKernelRegistry *registry) {
  for (const Operator *const *operator = operators; *operator; operator++) {
    OrtKernelDefBuilder *builder = NULL;
    RETURN_IF_ERROR(ORT_EP(CreateKernelDefBuilder)(&builder));
    OrtStatus *status = add_kernel(registry, builder, *operator);
    ORT_EP(ReleaseKernelDefBuilder)(builder);
    RETURN_IF_ERROR(status);
  }
  return NULL;
}

// The provider of one session

static const char *provider_name(const OrtEp *self) {
  (void)self;
  return NAME;
}

// Take the nodes that run as one with nodes[index], and remove them from the list.
static OrtStatus *fuse_nodes(OrtEpGraphSupportInfo *support, const Fusion *fusion,
                             const OrtNode **nodes, size_t count, size_t index) {
  const OrtNode *fused[MOST_FUSED];
  Node node;
  bool fits;
  if (!nodes[index] || !is_operator(nodes[index], fusion->domain, fusion->name)) return NULL;
  RETURN_IF_ERROR(describe_node(nodes[index], &node, &fits));
  const size_t fused_count = fits ? fusion->find(&node, fused) : 0;
  if (!fused_count) return NULL;
  for (size_t i = 0; i < count; i++)
    for (size_t j = 0; j < fused_count; j++)
      if (nodes[i] == fused[j]) nodes[i] = NULL;
  return ORT_EP(EpGraphSupportInfo_AddNodesToFuse)(support, fused, fused_count, NULL);
}

static OrtStatus *take_node(OrtEpGraphSupportInfo *support, const OrtNode *source) {
  const OrtKernelDef *definition = NULL;
  const Operator *operator = NULL;
  Node node;
  bool fits;
  for (const Operator *const *each = operators; source && *each && !operator; each++)
    if (is_operator(source, (*each)->domain, (*each)->name)) operator = *each;
  if (!operator) return NULL;
  RETURN_IF_ERROR(describe_node(source, &node, &fits));
  if (!fits || !operator->supports(&node)) return NULL;
  RETURN_IF_ERROR(ORT_EP(EpGraphSupportInfo_LookUpKernel)(support, source, &definition));
  if (!definition) return NULL;  // other types or another version
  return ORT_EP(EpGraphSupportInfo_AddSingleNode)(support, source);
}

static OrtStatus *get_capability(OrtEp *self, const OrtGraph *graph,
                                 OrtEpGraphSupportInfo *support) {
  size_t count;
  (void)self;
  RETURN_IF_ERROR(ORT(Graph_GetNumNodes)(graph, &count));
  const OrtNode **nodes = malloc(count * sizeof *nodes + 1);
  if (!nodes) return fail("edgetie: out of memory");
  OrtStatus *status = ORT(Graph_GetNodes)(graph, nodes, count);
  for (const Fusion *const *each = fusions; *each; each++)
    for (size_t i = 0; i < count && !status; i++)
      status = fuse_nodes(support, *each, nodes, count, i);
  for (size_t i = 0; i < count && !status; i++) status = take_node(support, nodes[i]);
  free(nodes);
  return status;
}

static OrtStatus *compile_graph(const OrtGraph *graph, const OrtNode *fused,
                                OrtNodeComputeInfo **info) {
  const OrtNode *nodes[MOST_FUSED];
  size_t count;
  Node node, described;
  bool fits;
  RETURN_IF_ERROR(ORT(Graph_GetNumNodes)(graph, &count));
  if (count > MOST_FUSED) return fail("edgetie: a fused graph of %zu nodes", count);
  RETURN_IF_ERROR(ORT(Graph_GetNodes)(graph, nodes, count));
  RETURN_IF_ERROR(describe_node(fused, &described, &fits));
  for (const Fusion *const *each = fusions; *each && fits; each++)
    for (size_t i = 0; i < count; i++) {
      if (!is_operator(nodes[i], (*each)->domain, (*each)->name)) continue;
      RETURN_IF_ERROR(describe_node(nodes[i], &node, &fits));
      return (*each)->compile(&node, &described, info);
    }
  return fail("edgetie: a fused graph of unknown nodes");
}

static OrtStatus *compile(OrtEp *self, const OrtGraph **graphs, const OrtNode **fused, size_t count,
                          OrtNodeComputeInfo **infos, OrtNode **contexts) {
  (void)self, (void)contexts;
  for (size_t i = 0; i < count; i++)
    RETURN_IF_ERROR(compile_graph(graphs[i], fused[i], &infos[i]));
  return NULL;
}

static void release_compiled(OrtEp *self, OrtNodeComputeInfo **infos, size_t count) {
  (void)self;
  for (size_t i = 0; i < count; i++) free(infos[i]);
}

static OrtStatus *get_registry(OrtEp *self, const OrtKernelRegistry **registry) {
  *registry = ((const Provider *)self)->factory->registry;
  return NULL;
}

static OrtStatus *is_concurrent(OrtEp *self, bool *supported) {
  (void)self;
  *supported = true;
  return NULL;
}

// The factory

static const char *factory_name(const OrtEpFactory *self) {
  (void)self;
  return NAME;
}

static const char *factory_vendor(const OrtEpFactory *self) {
  (void)self;
  return VENDOR;
}

static uint32_t factory_vendor_id(const OrtEpFactory *self) {
  (void)self;
  return 0;
}

static const char *factory_version(const OrtEpFactory *self) {
  (void)self;
  return EDGETIE_VERSION;
}

static OrtStatus *supported_devices(OrtEpFactory *self, const OrtHardwareDevice *const *devices,
                                    size_t count, OrtEpDevice **supported, size_t most,
                                    size_t *supported_count) {
  *supported_count = 0;
  for (size_t i = 0; i < count && *supported_count < most; i++) {
    if (ORT(HardwareDevice_Type)(devices[i]) != ORT_HARDWARE_CPU) continue;
    RETURN_IF_ERROR(ORT_EP(CreateEpDevice)(self, devices[i], NULL, NULL,
                                           &supported[*supported_count]));
    ++*supported_count;
  }
  return NULL;
}

static OrtStatus *create_provider(OrtEpFactory *self, const OrtHardwareDevice *const *devices,
                                  const OrtKeyValuePairs *const *metadata, size_t count,
                                  const OrtSessionOptions *options, const OrtLogger *logger,
                                  OrtEp **out) {
  (void)devices, (void)metadata, (void)count, (void)options, (void)logger;
  Provider *provider = calloc(1, sizeof *provider);
  if (!provider) return fail("edgetie: out of memory");
  provider->runtime = (OrtEp){.version = API_VERSION,
                              .GetName = provider_name,
                              .GetCapability = get_capability,
                              .Compile = compile,
                              .ReleaseNodeComputeInfos = release_compiled,
                              .GetKernelRegistry = get_registry,
                              .IsConcurrentRunSupported = is_concurrent};
  provider->factory = (const Factory *)self;
  *out = &provider->runtime;
  return NULL;
}

static void release_provider(OrtEpFactory *self, OrtEp *provider) {
  (void)self;
  free(provider);
}

// ONNX Runtime calls these without checking that they exist. The provider has no memory of its
// own: with an allocator, ONNX Runtime would copy the weights out of the mapped file.
static OrtStatus *no_allocator(OrtEpFactory *self, const OrtMemoryInfo *info,
                               const OrtKeyValuePairs *options, void **out) {
  (void)self, (void)info, (void)options;
  *out = NULL;
  return NULL;
}

static void release_nothing(OrtEpFactory *self, void *nothing) { (void)self, (void)nothing; }

static OrtStatus *no_data_transfer(OrtEpFactory *self, void **out) {
  (void)self;
  *out = NULL;
  return NULL;
}

static bool no_streams(const OrtEpFactory *self) {
  (void)self;
  return false;
}

static OrtStatus *no_stream(OrtEpFactory *self, const void *device,
                            const OrtKeyValuePairs *options, void **out) {
  (void)self, (void)device, (void)options;
  *out = NULL;
  return NULL;
}

// Called by ONNX Runtime once the library is loaded. A runtime older than API_VERSION gives no
// table of functions, thus no way to make an error: it sees no factory.
EXPORT OrtStatus *CreateEpFactories(const char *name, const OrtApiBase *base, const OrtLogger *log,
                                    OrtEpFactory **factories, size_t most, size_t *count) {
  (void)name, (void)log;
  *count = 0;
  OrtTable api = base->GetApi(API_VERSION);
  if (!api || most < 1) return NULL;
  ort_api = api;
  ort_ep_api = ORT(GetEpApi)();
  Factory *factory = calloc(1, sizeof *factory);
  if (!factory) return fail("edgetie: out of memory");
  factory->runtime = (OrtEpFactory){.version = API_VERSION,
                                    .GetName = factory_name,
                                    .GetVendor = factory_vendor,
                                    .GetSupportedDevices = supported_devices,
                                    .CreateEp = create_provider,
                                    .ReleaseEp = release_provider,
                                    .GetVendorId = factory_vendor_id,
                                    .GetVersion = factory_version,
                                    .CreateAllocator = no_allocator,
                                    .ReleaseAllocator = release_nothing,
                                    .CreateDataTransfer = no_data_transfer,
                                    .IsStreamAware = no_streams,
                                    .CreateSyncStreamForDevice = no_stream};
  OrtStatus *status = ORT_EP(CreateKernelRegistry)(&factory->registry);
  if (!status) status = fill_registry(factory->registry);
  if (status) {
    if (factory->registry) ORT_EP(ReleaseKernelRegistry)(factory->registry);
    free(factory);
    return status;
  }
  factories[0] = &factory->runtime;
  *count = 1;
  return NULL;
}

EXPORT OrtStatus *ReleaseEpFactory(OrtEpFactory *self) {
  Factory *factory = (Factory *)self;
  ORT_EP(ReleaseKernelRegistry)(factory->registry);
  free(factory);
  return NULL;
}

// For tests and reports: the name of the instruction set that the kernels use.
EXPORT const char *edgetie_instruction_set(void) { return select_kernels()->name; }
