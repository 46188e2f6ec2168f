/* Makes model.h available to Model.kt. Text is passed as UTF-8 bytes, because the "UTF" functions of
   JNI use another encoding. */
#include <jni.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

typedef struct {
  JNIEnv *env;
  jobject show;
  jmethodID take;
} Listener;

static int listen(void *user, const char *text, size_t length) {
  Listener *listener = user;
  JNIEnv *env = listener->env;
  jbyteArray bytes = (*env)->NewByteArray(env, (jsize)length);
  if (!bytes) return 0; /* an exception is pending */
  (*env)->SetByteArrayRegion(env, bytes, 0, (jsize)length, (const jbyte *)text);
  jboolean more = (*env)->CallBooleanMethod(env, listener->show, listener->take, bytes);
  (*env)->DeleteLocalRef(env, bytes);
  return more && !(*env)->ExceptionCheck(env);
}

static char *string(JNIEnv *env, jbyteArray bytes) { /* to be freed */
  jsize length = (*env)->GetArrayLength(env, bytes);
  char *text = malloc((size_t)length + 1);
  if (!text) return NULL;
  (*env)->GetByteArrayRegion(env, bytes, 0, length, (jbyte *)text);
  text[length] = 0;
  return text;
}

static void throw_problem(JNIEnv *env) {
  if ((*env)->ExceptionCheck(env)) return;
  jclass kind = (*env)->FindClass(env, "java/io/IOException");
  if (kind) (*env)->ThrowNew(env, kind, model_problem());
}

JNIEXPORT jlong JNICALL Java_app_starter_Model_open(JNIEnv *env, jobject self, jbyteArray folder) {
  (void)self;
  char *path = string(env, folder);
  Model *model = path ? model_open(path) : NULL;
  free(path);
  if (!model) throw_problem(env);
  return (jlong)(intptr_t)model;
}

JNIEXPORT void JNICALL Java_app_starter_Model_close(JNIEnv *env, jobject self, jlong model) {
  (void)env, (void)self;
  model_close((Model *)(intptr_t)model);
}

JNIEXPORT jbyteArray JNICALL Java_app_starter_Model_provider(JNIEnv *env, jobject self, jlong model) {
  (void)self;
  const char *text = model_provider((Model *)(intptr_t)model);
  jbyteArray bytes = (*env)->NewByteArray(env, (jsize)strlen(text));
  if (bytes) (*env)->SetByteArrayRegion(env, bytes, 0, (jsize)strlen(text), (const jbyte *)text);
  return bytes;
}

JNIEXPORT void JNICALL Java_app_starter_Model_reset(JNIEnv *env, jobject self, jlong model) {
  (void)env, (void)self;
  model_reset((Model *)(intptr_t)model);
}

/* The options that Model.kt states; NaN leaves one as the model's own settings say. */
static Options read_options(const double *numbers) {
  Options options = model_options();
  if (numbers[0] == numbers[0]) options.max_new_tokens = (long)numbers[0];
  if (numbers[1] == numbers[1]) options.temperature = numbers[1];
  if (numbers[2] == numbers[2]) options.top_k = (long)numbers[2];
  if (numbers[3] == numbers[3]) options.top_p = numbers[3];
  if (numbers[4] == numbers[4]) options.repetition_penalty = numbers[4];
  if (numbers[5] == numbers[5]) options.seed = (int64_t)numbers[5];
  return options;
}

/* Returns the number of tokens read, followed by those written. */
JNIEXPORT jlongArray JNICALL Java_app_starter_Model_answer(JNIEnv *env, jobject self, jlong model,
                                                           jbyteArray prompt, jdoubleArray numbers,
                                                           jbyteArray stops, jobject show) {
  (void)self;
  double values[6];
  (*env)->GetDoubleArrayRegion(env, numbers, 0, 6, values);
  Options options = read_options(values);
  jclass kind = (*env)->GetObjectClass(env, show);
  Listener listener = {env, show, (*env)->GetMethodID(env, kind, "take", "([B)Z")};
  char *text = string(env, prompt), *ends = stops ? string(env, stops) : NULL;
  if (ends) options.stop_strings = ends;
  int answered = listener.take && text && (!stops || ends) &&
                 model_answer((Model *)(intptr_t)model, text, &options, listen, &listener);
  free(text), free(ends);
  if (!answered || (*env)->ExceptionCheck(env)) return throw_problem(env), NULL;
  const Answer *last = model_last((Model *)(intptr_t)model);
  jlong read = (jlong)last->read;
  jlongArray result = (*env)->NewLongArray(env, (jsize)last->count + 1);
  if (!result) return NULL;
  (*env)->SetLongArrayRegion(env, result, 0, 1, &read);
  (*env)->SetLongArrayRegion(env, result, 1, (jsize)last->count, (const jlong *)last->tokens);
  return result;
}
