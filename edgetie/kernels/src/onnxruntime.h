// The part of ONNX Runtime's C interface that the provider uses, declared by hand.
//
// ONNX Runtime gives plugins tables of function pointers. The tables only grow at the end, so a
// function is identified by its table and its place there. API_VERSION is the oldest version that
// has all functions below; every later runtime has them at the same places.

#ifndef EDGETIE_ONNXRUNTIME_H
#define EDGETIE_ONNXRUNTIME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { API_VERSION = 24 };

typedef struct OrtStatus OrtStatus;  // NULL: success
typedef struct OrtValue OrtValue;
typedef struct OrtNode OrtNode;
typedef struct OrtGraph OrtGraph;
typedef struct OrtOpAttr OrtOpAttr;
typedef struct OrtLogger OrtLogger;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtEpDevice OrtEpDevice;
typedef struct OrtEpFactory OrtEpFactory;
typedef struct OrtAllocator OrtAllocator;
typedef struct OrtValueInfo OrtValueInfo;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtKeyValuePairs OrtKeyValuePairs;
typedef struct OrtHardwareDevice OrtHardwareDevice;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtEpGraphSupportInfo OrtEpGraphSupportInfo;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;

typedef void (*const *OrtTable)(void);

typedef struct {
  OrtTable (*GetApi)(uint32_t version);  // NULL: the runtime is older than that version
  const char *(*GetVersionString)(void);
} OrtApiBase;

enum { ORT_INVALID_ARGUMENT = 2 };                                        // OrtErrorCode
enum { ORT_HARDWARE_CPU = 0 };                                            // OrtHardwareDeviceType
enum { ORT_ARENA_ALLOCATOR = 1 };                                         // OrtAllocatorType
enum { ORT_DEFAULT_MEMORY = 0 };                                          // OrtMemType
enum { ORT_ATTRIBUTE_INT = 1, ORT_ATTRIBUTE_FLOAT = 3, ORT_ATTRIBUTE_STRING = 5 };  // OrtOpAttrType
enum {                                                                    // element types
  ELEMENT_FLOAT = 1,
  ELEMENT_UINT8 = 2,
  ELEMENT_INT8 = 3,
  ELEMENT_INT64 = 7
};

extern OrtTable ort_api, ort_ep_api;

// ORT(Function)(arguments) calls a function of OrtApi, ORT_EP(Function)(arguments) of OrtEpApi.
#define ORT(name) ((name##_type)ort_api[name##_place])
#define ORT_EP(name) ((name##_type)ort_ep_api[name##_place])
#define ORT_FUNCTION(place, result, name, ...) \
  enum { name##_place = place };               \
  typedef result (*name##_type)(__VA_ARGS__);

// OrtApi
ORT_FUNCTION(0, OrtStatus *, CreateStatus, int code, const char *message)
ORT_FUNCTION(51, OrtStatus *, GetTensorMutableData, OrtValue *, void **data)
ORT_FUNCTION(55, OrtStatus *, CastTypeInfoToTensorInfo, const OrtTypeInfo *,
             const OrtTensorTypeAndShapeInfo **)
ORT_FUNCTION(60, OrtStatus *, GetTensorElementType, const OrtTensorTypeAndShapeInfo *, int *type)
ORT_FUNCTION(61, OrtStatus *, GetDimensionsCount, const OrtTensorTypeAndShapeInfo *, size_t *count)
ORT_FUNCTION(62, OrtStatus *, GetDimensions, const OrtTensorTypeAndShapeInfo *, int64_t *sizes,
             size_t count)
ORT_FUNCTION(69, OrtStatus *, CreateCpuMemoryInfo, int allocator, int memory, OrtMemoryInfo **)
ORT_FUNCTION(90, OrtStatus *, KernelContext_GetInput, const OrtKernelContext *, size_t index,
             const OrtValue **)
ORT_FUNCTION(91, OrtStatus *, KernelContext_GetOutput, OrtKernelContext *, size_t index,
             const int64_t *sizes, size_t rank, OrtValue **)
ORT_FUNCTION(93, void, ReleaseStatus, OrtStatus *)
ORT_FUNCTION(94, void, ReleaseMemoryInfo, OrtMemoryInfo *)
ORT_FUNCTION(132, void, ReleaseAllocator, OrtAllocator *)
ORT_FUNCTION(253, OrtStatus *, KernelContext_GetAllocator, const OrtKernelContext *,
             const OrtMemoryInfo *, OrtAllocator **)
ORT_FUNCTION(272, OrtStatus *, ReadOpAttr, const OrtOpAttr *, int type, void *data, size_t size,
             size_t *out_size)
ORT_FUNCTION(274, OrtStatus *, KernelContext_ParallelFor, const OrtKernelContext *,
             void (*task)(void *state, size_t index), size_t total, size_t batches, void *state)
ORT_FUNCTION(289, OrtStatus *, GetValueInfoName, const OrtValueInfo *, const char **)
ORT_FUNCTION(290, OrtStatus *, GetValueInfoTypeInfo, const OrtValueInfo *, const OrtTypeInfo **)
ORT_FUNCTION(307, int, HardwareDevice_Type, const OrtHardwareDevice *)
ORT_FUNCTION(317, OrtTable, GetEpApi, void)
ORT_FUNCTION(323, OrtStatus *, ValueInfo_GetValueProducer, const OrtValueInfo *, const OrtNode **,
             size_t *output)
ORT_FUNCTION(324, OrtStatus *, ValueInfo_GetValueNumConsumers, const OrtValueInfo *, size_t *)
ORT_FUNCTION(325, OrtStatus *, ValueInfo_GetValueConsumers, const OrtValueInfo *, const OrtNode **,
             int64_t *inputs, size_t count)
ORT_FUNCTION(326, OrtStatus *, ValueInfo_GetInitializerValue, const OrtValueInfo *,
             const OrtValue **)
ORT_FUNCTION(330, OrtStatus *, ValueInfo_IsGraphOutput, const OrtValueInfo *, bool *)
ORT_FUNCTION(331, OrtStatus *, ValueInfo_IsConstantInitializer, const OrtValueInfo *, bool *)
ORT_FUNCTION(344, OrtStatus *, Graph_GetNumNodes, const OrtGraph *, size_t *)
ORT_FUNCTION(345, OrtStatus *, Graph_GetNodes, const OrtGraph *, const OrtNode **, size_t count)
ORT_FUNCTION(348, OrtStatus *, Node_GetId, const OrtNode *, size_t *)
ORT_FUNCTION(350, OrtStatus *, Node_GetOperatorType, const OrtNode *, const char **)
ORT_FUNCTION(351, OrtStatus *, Node_GetDomain, const OrtNode *, const char **)
ORT_FUNCTION(352, OrtStatus *, Node_GetSinceVersion, const OrtNode *, int *)
ORT_FUNCTION(353, OrtStatus *, Node_GetNumInputs, const OrtNode *, size_t *)
ORT_FUNCTION(354, OrtStatus *, Node_GetInputs, const OrtNode *, const OrtValueInfo **, size_t count)
ORT_FUNCTION(355, OrtStatus *, Node_GetNumOutputs, const OrtNode *, size_t *)
ORT_FUNCTION(356, OrtStatus *, Node_GetOutputs, const OrtNode *, const OrtValueInfo **,
             size_t count)
ORT_FUNCTION(357, OrtStatus *, Node_GetNumImplicitInputs, const OrtNode *, size_t *)
ORT_FUNCTION(358, OrtStatus *, Node_GetImplicitInputs, const OrtNode *, const OrtValueInfo **,
             size_t count)
ORT_FUNCTION(361, OrtStatus *, Node_GetAttributeByName, const OrtNode *, const char *name,
             const OrtOpAttr **)
ORT_FUNCTION(414, OrtStatus *, GetTensorElementTypeAndShapeDataReference, const OrtValue *,
             int *type, const int64_t **sizes, size_t *rank)

// OrtEpApi
ORT_FUNCTION(0, OrtStatus *, CreateEpDevice, OrtEpFactory *, const OrtHardwareDevice *,
             const OrtKeyValuePairs *metadata, const OrtKeyValuePairs *options, OrtEpDevice **)
ORT_FUNCTION(2, OrtStatus *, EpGraphSupportInfo_AddNodesToFuse, OrtEpGraphSupportInfo *,
             const OrtNode *const *, size_t count, const void *options)

struct OrtAllocator {
  uint32_t version;
  void *(*Alloc)(OrtAllocator *, size_t size);
  void (*Free)(OrtAllocator *, void *);
};

// What the provider implements. Members that stay NULL are optional for ONNX Runtime.
// One node that stands for several.
typedef struct OrtNodeComputeInfo {
  uint32_t version;
  OrtStatus *(*CreateState)(struct OrtNodeComputeInfo *, void *context, void **state);
  OrtStatus *(*Compute)(struct OrtNodeComputeInfo *, void *state, OrtKernelContext *);
  void (*ReleaseState)(struct OrtNodeComputeInfo *, void *state);
} OrtNodeComputeInfo;

typedef struct OrtEp {
  uint32_t version;
  const char *(*GetName)(const struct OrtEp *);
  OrtStatus *(*GetCapability)(struct OrtEp *, const OrtGraph *, OrtEpGraphSupportInfo *);
  OrtStatus *(*Compile)(struct OrtEp *, const OrtGraph **, const OrtNode **fused, size_t count,
                        OrtNodeComputeInfo **, OrtNode **contexts);
  void (*ReleaseNodeComputeInfos)(struct OrtEp *, OrtNodeComputeInfo **, size_t count);
  void *optional_5_to_13[9];
  OrtStatus *(*IsConcurrentRunSupported)(struct OrtEp *, bool *);
  void *optional_15_to_25[11];
} OrtEp;

struct OrtEpFactory {
  uint32_t version;
  const char *(*GetName)(const OrtEpFactory *);
  const char *(*GetVendor)(const OrtEpFactory *);
  OrtStatus *(*GetSupportedDevices)(OrtEpFactory *, const OrtHardwareDevice *const *devices,
                                    size_t count, OrtEpDevice **supported, size_t most,
                                    size_t *supported_count);
  OrtStatus *(*CreateEp)(OrtEpFactory *, const OrtHardwareDevice *const *devices,
                         const OrtKeyValuePairs *const *metadata, size_t count,
                         const OrtSessionOptions *, const OrtLogger *, OrtEp **);
  void (*ReleaseEp)(OrtEpFactory *, OrtEp *);
  uint32_t (*GetVendorId)(const OrtEpFactory *);
  const char *(*GetVersion)(const OrtEpFactory *);
  void *optional_8;
  OrtStatus *(*CreateAllocator)(OrtEpFactory *, const OrtMemoryInfo *,
                                const OrtKeyValuePairs *, void **);
  void (*ReleaseAllocator)(OrtEpFactory *, void *);
  OrtStatus *(*CreateDataTransfer)(OrtEpFactory *, void **);
  bool (*IsStreamAware)(const OrtEpFactory *);
  OrtStatus *(*CreateSyncStreamForDevice)(OrtEpFactory *, const void *device,
                                          const OrtKeyValuePairs *, void **);
  void *optional_14_to_20[7];
};

#endif
