/* Makes model.h available to Model.kt. Text is passed as UTF-8 bytes, because the "UTF" functions of
   JNI use another encoding. */
#include <jni.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

typedef struct {
  JNIEnv *env;
  jobject piece;
  jmethodID take;
} Listener;

static int listen(void *user, const char *text, size_t length, int64_t token, int ends) {
  Listener *listener = user;
  JNIEnv *env = listener->env;
  jbyteArray bytes = (*env)->NewByteArray(env, (jsize)length);
  if (!bytes) return 0; /* an exception is pending */
  (*env)->SetByteArrayRegion(env, bytes, 0, (jsize)length, (const jbyte *)text);
  jboolean more = (*env)->CallBooleanMethod(env, listener->piece, listener->take, bytes,
                                            (jlong)token, (jboolean)(ends != 0));
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

JNIEXPORT void JNICALL Java_app_starter_Model_answer(JNIEnv *env, jobject self, jlong model,
                                                     jbyteArray prompt, jlong most, jobject piece) {
  (void)self;
  jclass kind = (*env)->GetObjectClass(env, piece);
  Listener listener = {env, piece, (*env)->GetMethodID(env, kind, "take", "([BJZ)Z")};
  char *text = string(env, prompt);
  int answered = listener.take && text &&
                 model_answer((Model *)(intptr_t)model, text, (long)most, listen, &listener);
  free(text);
  if (!answered) throw_problem(env);
}
