// LiteRt2Model.kt's functions: LiteRT 2 compiles a model with the delegate as an accelerator for the CPU.
//
// The app brings libLiteRt.so. The functions that make an accelerator are internal to LiteRT and are declared here as version
// 2.3 has them; another version may lack them or change their arguments.
#include <binaryvit_runtime.h>
#include <jni.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

constexpr int kCpu = 1;
constexpr int kFloat32 = 1;
constexpr int kHostMemory = 1;

struct Version {
  int major, minor, patch;
};

struct TensorType {
  int32_t element;
  uint32_t rank;  // in the lowest 7 bits
  int32_t shape[8];
  uint32_t strides[8];
};

}  // namespace

// CMakeLists.txt makes a library of these names to link with.
extern "C" {
int LiteRtCreateEnvironment(int count, const void* options, void** environment);
int LiteRtCreateAccelerator(void** accelerator);
int LiteRtSetAcceleratorGetName(void* accelerator, int (*get)(void*, const char**));
int LiteRtSetAcceleratorGetVersion(void* accelerator, int (*get)(void*, Version*));
int LiteRtSetAcceleratorGetHardwareSupport(void* accelerator, int (*get)(void*, int*));
int LiteRtSetDelegateFunction(void* accelerator, int (*create)(void*, void*, void*, void*, void*));
int LiteRtRegisterAccelerator(void* environment, void* accelerator, void* data, void (*release)(void*));
int LiteRtWrapDelegate(void* delegate, void (*destroy)(void*), void* wrapper);
int LiteRtCreateModelFromBuffer(void* environment, const void* content, size_t size, void** model);
int LiteRtCreateOptions(void** options);
int LiteRtSetOptionsHardwareAccelerators(void* options, int accelerators);
int LiteRtCreateCompiledModel(void* environment, void* model, void* options, void** compiled);
int LiteRtGetModelSubgraph(void* model, size_t index, void** subgraph);
int LiteRtGetNumSubgraphInputs(void* subgraph, size_t* count);
int LiteRtGetNumSubgraphOutputs(void* subgraph, size_t* count);
int LiteRtGetSubgraphInput(void* subgraph, size_t index, void** tensor);
int LiteRtGetSubgraphOutput(void* subgraph, size_t index, void** tensor);
int LiteRtGetRankedTensorType(void* tensor, TensorType* type);
int LiteRtCreateManagedTensorBuffer(void* environment, int memory, const TensorType* type, size_t size, void** buffer);
int LiteRtGetTensorBufferHostMemory(void* buffer, void** address);
int LiteRtRunCompiledModel(void* compiled, size_t signature, size_t inputs, void** input, size_t outputs, void** output);
void LiteRtDestroyTensorBuffer(void* buffer);
void LiteRtDestroyCompiledModel(void* compiled);
void LiteRtDestroyOptions(void* options);
void LiteRtDestroyModel(void* model);
void LiteRtDestroyEnvironment(void* environment);
}

namespace {

// A tensor of the model, and the memory that LiteRT reads or writes.
struct Tensor {
  TensorType type;
  void* buffer;
  void* values;

  jint Size() const {
    jint size = 1;
    for (uint32_t i = 0; i < (type.rank & 127); ++i) size *= type.shape[i];
    return size;
  }
};

struct Model {
  void *environment, *model, *options, *compiled;
  Tensor input, output;
};

void Destroy(Model* model) {
  if (model->input.buffer) LiteRtDestroyTensorBuffer(model->input.buffer);
  if (model->output.buffer) LiteRtDestroyTensorBuffer(model->output.buffer);
  if (model->compiled) LiteRtDestroyCompiledModel(model->compiled);  // and the delegate
  if (model->options) LiteRtDestroyOptions(model->options);
  if (model->model) LiteRtDestroyModel(model->model);
  if (model->environment) LiteRtDestroyEnvironment(model->environment);
  free(model);
}

void Throw(JNIEnv* env, const char* message) {
  env->ThrowNew(env->FindClass("java/lang/IllegalStateException"), message);
}

// Whether a function of LiteRT's has succeeded; if not, throws an exception that names it.
bool Ok(JNIEnv* env, int status, const char* function) {
  if (status == 0) return true;
  char message[200];
  snprintf(message, sizeof message, "LiteRT 2 can't run this model: %s returned status %d", function, status);
  Throw(env, message);
  return false;
}
#define CALL(env, function, ...) Ok(env, function(__VA_ARGS__), #function)

// Threads of the delegate that is made next. LiteRT's callback has no place for it; LiteRt2Model.kt lets one in at a time.
char threads[16];

int CreateDelegate(void*, void*, void*, void*, void* wrapper) {
  const char *key = "num_threads", *value = threads;
  TfLiteDelegate* delegate = tflite_plugin_create_delegate(&key, &value, 1, nullptr);
  if (!delegate) return 2;  // kLiteRtStatusErrorMemoryAllocationFailure
  auto destroy = [](void* made) { tflite_plugin_destroy_delegate(static_cast<TfLiteDelegate*>(made)); };
  return LiteRtWrapDelegate(delegate, destroy, wrapper);
}

bool RegisterAccelerator(JNIEnv* env, void* environment) {
  void* accelerator = nullptr;
  auto name = [](void*, const char** result) { return *result = "BinaryViT", 0; };
  auto version = [](void*, Version* result) { return *result = {0, 1, 0}, 0; };
  auto hardware = [](void*, int* result) { return *result = kCpu, 0; };
  return CALL(env, LiteRtCreateAccelerator, &accelerator) && CALL(env, LiteRtSetAcceleratorGetName, accelerator, name) &&
         CALL(env, LiteRtSetAcceleratorGetVersion, accelerator, version) &&
         CALL(env, LiteRtSetAcceleratorGetHardwareSupport, accelerator, hardware) &&
         CALL(env, LiteRtSetDelegateFunction, accelerator, CreateDelegate) &&
         CALL(env, LiteRtRegisterAccelerator, environment, accelerator, nullptr, nullptr);
}

bool MakeBuffer(JNIEnv* env, void* environment, void* of_model, Tensor* tensor) {
  if (!CALL(env, LiteRtGetRankedTensorType, of_model, &tensor->type)) return false;
  if (tensor->type.element != kFloat32) return Throw(env, "LiteRT 2 runs models of float32 only"), false;
  const size_t bytes = sizeof(float) * static_cast<size_t>(tensor->Size());
  return CALL(env, LiteRtCreateManagedTensorBuffer, environment, kHostMemory, &tensor->type, bytes, &tensor->buffer) &&
         CALL(env, LiteRtGetTensorBufferHostMemory, tensor->buffer, &tensor->values);
}

bool Compile(JNIEnv* env, const void* content, size_t size, Model* made) {
  void *graph = nullptr, *input = nullptr, *output = nullptr;
  size_t inputs = 0, outputs = 0;
  if (!CALL(env, LiteRtCreateEnvironment, 0, nullptr, &made->environment) ||
      !RegisterAccelerator(env, made->environment) ||
      !CALL(env, LiteRtCreateModelFromBuffer, made->environment, content, size, &made->model) ||
      !CALL(env, LiteRtCreateOptions, &made->options) ||
      !CALL(env, LiteRtSetOptionsHardwareAccelerators, made->options, kCpu) ||
      !CALL(env, LiteRtCreateCompiledModel, made->environment, made->model, made->options, &made->compiled) ||
      !CALL(env, LiteRtGetModelSubgraph, made->model, 0, &graph) ||
      !CALL(env, LiteRtGetNumSubgraphInputs, graph, &inputs) ||
      !CALL(env, LiteRtGetNumSubgraphOutputs, graph, &outputs)) {
    return false;
  }
  if (inputs != 1 || outputs != 1) return Throw(env, "the model must have one input and one output"), false;
  return CALL(env, LiteRtGetSubgraphInput, graph, 0, &input) && CALL(env, LiteRtGetSubgraphOutput, graph, 0, &output) &&
         MakeBuffer(env, made->environment, input, &made->input) &&
         MakeBuffer(env, made->environment, output, &made->output);
}

Model* Get(jlong handle) { return reinterpret_cast<Model*>(static_cast<intptr_t>(handle)); }

}  // namespace

extern "C" JNIEXPORT jlong JNICALL Java_org_binaryvit_runtime_LiteRt2Model_create(JNIEnv* env, jclass, jobject content,
                                                                                 jint num_threads) {
  const void* address = env->GetDirectBufferAddress(content);
  if (!address) return Throw(env, "the model must be in a direct ByteBuffer"), 0;
  snprintf(threads, sizeof threads, "%d", num_threads);
  Model* model = static_cast<Model*>(calloc(1, sizeof(Model)));
  if (!model) return Throw(env, "out of memory"), 0;
  if (Compile(env, address, static_cast<size_t>(env->GetDirectBufferCapacity(content)), model)) {
    return static_cast<jlong>(reinterpret_cast<intptr_t>(model));
  }
  Destroy(model);
  return 0;
}

extern "C" JNIEXPORT jintArray JNICALL Java_org_binaryvit_runtime_LiteRt2Model_shape(JNIEnv* env, jclass, jlong handle,
                                                                                    jboolean of_input) {
  const TensorType& type = (of_input ? Get(handle)->input : Get(handle)->output).type;
  const jsize rank = static_cast<jsize>(type.rank & 127);
  jintArray result = env->NewIntArray(rank);
  if (result) env->SetIntArrayRegion(result, 0, rank, type.shape);
  return result;
}

// A wrong length is an ArrayIndexOutOfBoundsException.
extern "C" JNIEXPORT void JNICALL Java_org_binaryvit_runtime_LiteRt2Model_run(JNIEnv* env, jclass, jlong handle,
                                                                             jfloatArray input, jfloatArray output) {
  Model* model = Get(handle);
  env->GetFloatArrayRegion(input, 0, model->input.Size(), static_cast<float*>(model->input.values));
  if (env->ExceptionCheck() || !CALL(env, LiteRtRunCompiledModel, model->compiled, 0, 1, &model->input.buffer, 1,
                                     &model->output.buffer)) {
    return;
  }
  env->SetFloatArrayRegion(output, 0, model->output.Size(), static_cast<const float*>(model->output.values));
}

extern "C" JNIEXPORT void JNICALL Java_org_binaryvit_runtime_LiteRt2Model_destroy(JNIEnv*, jclass, jlong handle) {
  if (handle) Destroy(Get(handle));
}
