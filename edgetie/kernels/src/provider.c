// The library's entry points, the factory and the execution provider.

#include <stdlib.h>
#include <string.h>

#include "partition.h"
#include "program.h"

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

// The provider of one session

static const char *provider_name(const OrtEp *self) {
  (void)self;
  return NAME;
}

static OrtStatus *get_capability(OrtEp *self, const OrtGraph *graph,
                                 OrtEpGraphSupportInfo *support) {
  (void)self;
  return add_programs(graph, support);
}

static OrtStatus *compile(OrtEp *self, const OrtGraph **graphs, const OrtNode **fused, size_t count,
                          OrtNodeComputeInfo **infos, OrtNode **contexts) {
  (void)self, (void)contexts;
  for (size_t i = 0; i < count; i++)
    RETURN_IF_ERROR(create_program(graphs[i], fused[i], &infos[i]));
  return NULL;
}

static void release_compiled(OrtEp *self, OrtNodeComputeInfo **infos, size_t count) {
  (void)self;
  for (size_t i = 0; i < count; i++) release_program(infos[i]);
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
  (void)self;
  OrtEp *provider = *out = calloc(1, sizeof *provider);
  if (!provider) return fail("edgetie: out of memory");
  *provider = (OrtEp){.version = API_VERSION,
                      .GetName = provider_name,
                      .GetCapability = get_capability,
                      .Compile = compile,
                      .ReleaseNodeComputeInfos = release_compiled,
                      .IsConcurrentRunSupported = is_concurrent};
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
  const char *wanted = getenv("EDGETIE_INSTRUCTION_SET"), *used = select_kernels()->name;
  if (wanted && *wanted && strcmp(wanted, used))
    return fail("EDGETIE_INSTRUCTION_SET=%s: this processor has no such instruction set; unset it, "
                "or name one below %s", wanted, used);
  OrtEpFactory *factory = factories[0] = calloc(1, sizeof *factory);
  if (!factory) return fail("edgetie: out of memory");
  *factory = (OrtEpFactory){.version = API_VERSION,
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
  *count = 1;
  return NULL;
}

EXPORT OrtStatus *ReleaseEpFactory(OrtEpFactory *self) {
  free(self);
  return NULL;
}

// For tests and reports: the name of the instruction set that the kernels use.
EXPORT const char *edgetie_instruction_set(void) { return select_kernels()->name; }
