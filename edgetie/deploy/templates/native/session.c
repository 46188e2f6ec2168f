#define _GNU_SOURCE
#include "session.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "app.h"

const OrtApi *session_api;
static _Thread_local char problem[512];

const char *session_problem(void) { return problem; }

void session_fail(const char *what, const char *why) {
  snprintf(problem, sizeof problem, "%.300s%.200s", what, why);
}

int session_failed(OrtStatus *status) {
  if (!status) return 0;
  session_fail("", session_api->GetErrorMessage(status));
  session_api->ReleaseStatus(status);
  return 1;
}

#define TRY(call)                                      \
  do {                                                 \
    if (session_failed(session_api->call)) goto done; \
  } while (0)

void session_release(const Session *session, int code_too) {
#ifdef __linux__
  char line[4096];
  FILE *maps = fopen("/proc/self/maps", "r");
  while (maps && fgets(line, sizeof line, maps)) {
    unsigned long start, end, offset;
    char mode[5] = "";
    if (sscanf(line, "%lx-%lx %4s %lx", &start, &end, mode, &offset) != 4) continue;
    int weights = APP_PACKED && !session->in_file && strstr(line, APP_WEIGHTS) != NULL;
    int code = code_too && (mode[2] == 'x' || !offset) && strstr(line, "libonnxruntime") != NULL;
    if (weights || code) madvise((void *)start, end - start, MADV_DONTNEED);
  }
  if (maps) fclose(maps);
#ifdef __GLIBC__
  if (code_too) malloc_trim(0);
#endif
#else
  (void)session, (void)code_too;
#endif
}

static int map_file(Session *session, const char *path) {
  struct stat about;
  int file = open(path, O_RDONLY);
  if (file < 0 || fstat(file, &about)) return session_fail(path, ": cannot be read"), 1;
  session->bytes = (size_t)about.st_size;
  session->file = mmap(NULL, session->bytes, PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  if (session->file != MAP_FAILED) return 0;
  session->file = NULL;
  return session_fail(path, ": cannot be mapped"), 1;
}

static void describe_provider(Session *session, int has_plugin, const char *why) {
  size_t own = 0, all = 0, size = sizeof session->provider;
  if (has_plugin) plugin_nodes(session_api, session->session, &own, &all);
  if (all) snprintf(session->provider, size, "edgetie (%zu of %zu nodes)", own, all);
  else if (has_plugin) snprintf(session->provider, size, "edgetie");
  else snprintf(session->provider, size, "cpu: %s", why);
}

int session_open(Session *session, const char *path) {
  OrtSessionOptions *options = NULL;
  char why[sizeof session->provider - 8];
  int started = 0;
  if (!session_api) session_api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (!session_api) {
    session_fail("this ONNX Runtime is older than the headers it was built with", "");
    return 0;
  }
  TRY(CreateEnv(ORT_LOGGING_LEVEL_FATAL, "app", &session->env));
  TRY(CreateSessionOptions(&options));
  TRY(DisableMemPattern(options));
  TRY(AddSessionConfigEntry(options, "session.intra_op.spin_duration_us", "50"));
  /* exact sums of uint8 times int8 also on x86 processors without VNNI */
  TRY(AddSessionConfigEntry(options, "session.x64quantprecision", "1"));
  int has_plugin = plugin_add(session_api, session->env, options, why, sizeof why);
  session->in_file = has_plugin && APP_IN_FILE;
  if (!APP_OPTIMIZE || session->in_file) TRY(SetSessionGraphOptimizationLevel(options, ORT_DISABLE_ALL));
  if (APP_ORT_FORMAT) { /* weights stay in the mapped file, as they do with .onnx */
    if (map_file(session, path)) goto done;
    TRY(AddSessionConfigEntry(options, "session.use_ort_model_bytes_directly", "1"));
    TRY(AddSessionConfigEntry(options, "session.use_ort_model_bytes_for_initializers", "1"));
    TRY(CreateSessionFromArray(session->env, session->file, session->bytes, options, &session->session));
  } else {
    TRY(CreateSession(session->env, path, options, &session->session));
  }
  TRY(CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &session->cpu));
  describe_provider(session, has_plugin, why);
  session_release(session, 1);
  started = 1;
done:
  if (options) session_api->ReleaseSessionOptions(options);
  return started;
}

void session_close(Session *session) {
  if (session->cpu) session_api->ReleaseMemoryInfo(session->cpu);
  if (session->session) session_api->ReleaseSession(session->session);
  if (session->env) session_api->ReleaseEnv(session->env);
  if (session->file) munmap(session->file, session->bytes);
}

int session_bind(const Session *session, OrtIoBinding *binding, int output, const char *name,
                 void *data, size_t size, const int64_t *shape, size_t rank, int type) {
  OrtValue *value = NULL;
  size_t bytes = size;
  for (size_t i = 0; i < rank; i++) bytes *= (size_t)shape[i];
  if (session_failed(session_api->CreateTensorWithDataAsOrtValue(session->cpu, data, bytes, shape, rank,
                                                 (ONNXTensorElementDataType)type, &value)))
    return 0;
  int bad = session_failed(output ? session_api->BindOutput(binding, name, value)
                          : session_api->BindInput(binding, name, value));
  session_api->ReleaseValue(value);
  return !bad;
}
