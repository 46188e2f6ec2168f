#define _GNU_SOURCE
#include "plugin.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"

static const char NAME[] = "EdgetieExecutionProvider";

/* Functions of ONNX Runtime 1.24, which older headers lack, by their places in its table. The table
   only grows at its end. */
typedef void (*Function)(void);
#define FUNCTION(place, result, name, ...) \
  enum { name##Place = place };            \
  typedef result (*name##Type)(__VA_ARGS__);
#define ORT(name) ((name##Type)((const Function *)ort)[name##Place])

typedef const struct OrtEpDevice *Device;
typedef const struct OrtEpAssignedSubgraph *Part;
typedef const struct OrtEpAssignedNode *Node;
FUNCTION(301, OrtStatus *, Register, OrtEnv *, const char *name, const char *path)
FUNCTION(303, OrtStatus *, GetDevices, const OrtEnv *, const Device **, size_t *count)
FUNCTION(304, OrtStatus *, Append, OrtSessionOptions *, OrtEnv *, const Device *, size_t count,
         const char *const *keys, const char *const *values, size_t options)
FUNCTION(312, const char *, GetDeviceName, Device)
FUNCTION(407, OrtStatus *, GetParts, const OrtSession *, const Part **, size_t *count)
FUNCTION(408, OrtStatus *, GetPartName, Part, const char **)
FUNCTION(409, OrtStatus *, GetPartNodes, Part, const Node **, size_t *count)

static int failed(const OrtApi *ort, OrtStatus *status, char *why, size_t size) {
  if (!status) return 0;
  snprintf(why, size, "%s", ort->GetErrorMessage(status));
  ort->ReleaseStatus(status);
  return 1;
}

static int find_device(const OrtApi *ort, OrtEnv *env, Device *device, char *why, size_t size) {
  const Device *devices;
  size_t count;
  if (failed(ort, ORT(GetDevices)(env, &devices, &count), why, size)) return 0;
  for (size_t i = 0; i < count; i++)
    if (!strcmp(ORT(GetDeviceName)(*device = devices[i]), NAME)) return 1;
  return 0;
}

int plugin_add(const OrtApi *ort, OrtEnv *env, OrtSessionOptions *options, char *why, size_t size) {
  const char *version = OrtGetApiBase()->GetVersionString();
  if (atoi(version) == 1 && atoi(version + 2) < 24)
    return snprintf(why, size, "edgetie's needs ONNX Runtime 1.24, this is %s", version), 0;
  void *library = dlopen(APP_KERNELS, RTLD_NOW | RTLD_LOCAL);
  void *entry = library ? dlsym(library, "CreateEpFactories") : NULL;
  if (!entry) return snprintf(why, size, "%s", dlerror()), 0;
  Dl_info about = {0};
  Device device;
  char absolute[PATH_MAX]; /* ONNX Runtime reads other paths from its own folder */
  dladdr(entry, &about);
  const char *path = realpath(about.dli_fname, absolute) ? absolute : about.dli_fname;
  snprintf(why, size, "%s has no provider for this machine", APP_KERNELS);
  if (!find_device(ort, env, &device, why, size) && /* it may be registered in this process */
      (failed(ort, ORT(Register)(env, NAME, path), why, size) ||
       !find_device(ort, env, &device, why, size)))
    return 0;
  const char *record = "session.record_ep_graph_assignment_info";
  return !failed(ort, ORT(Append)(options, env, &device, 1, NULL, NULL, 0), why, size) &&
         !failed(ort, ort->AddSessionConfigEntry(options, record, "1"), why, size);
}

void plugin_nodes(const OrtApi *ort, const OrtSession *session, size_t *own, size_t *all) {
  const Part *parts;
  size_t count;
  char why[1];
  *own = *all = 0;
  if (failed(ort, ORT(GetParts)(session, &parts, &count), why, sizeof why)) return;
  for (size_t i = 0; i < count; i++) {
    const char *name;
    const Node *nodes;
    size_t fresh;
    if (failed(ort, ORT(GetPartName)(parts[i], &name), why, sizeof why) ||
        failed(ort, ORT(GetPartNodes)(parts[i], &nodes, &fresh), why, sizeof why))
      return;
    *all += fresh;
    if (!strcmp(name, NAME)) *own += fresh;
  }
}
