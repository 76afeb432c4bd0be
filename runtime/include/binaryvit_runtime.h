/* binaryvit-runtime for C and C++: a LiteRT delegate that runs binary networks.
 *
 * With LiteRT's C API (tflite/c/c_api.h), linked with libbinaryvit_runtime.so:
 *
 *   TfLiteModel* model = TfLiteModelCreateFromFile("model.tflite");
 *   TfLiteInterpreterOptions* options = TfLiteInterpreterOptionsCreate();
 *   TfLiteInterpreterOptionsSetNumThreads(options, 4);
 *   TfLiteDelegate* delegate = tflite_plugin_create_delegate(NULL, NULL, 0, NULL);
 *   TfLiteInterpreterOptionsAddDelegate(options, delegate);
 *   TfLiteInterpreter* interpreter = TfLiteInterpreterCreate(model, options);
 *   ...
 *   TfLiteInterpreterDelete(interpreter);
 *   tflite_plugin_destroy_delegate(delegate);
 *
 * A program that doesn't link with it gives its path to LiteRT's external delegate, which finds the first two functions by
 * their names. Both ways work on 64-bit Linux and Android.
 */
#ifndef BINARYVIT_RUNTIME_H_
#define BINARYVIT_RUNTIME_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct TfLiteDelegate;

/* Returns a delegate for one interpreter, or NULL, when `report_error` (which may be NULL) has been given the reason.
 *
 * Options are pairs of texts, option_keys[i] and option_values[i]:
 *
 *   num_threads  Threads of the binary operators, 1 to 64. Default: as many as the interpreter has.
 *   profile      1: measure how long each operator takes, for binaryvit_profile. Default: 0.
 *
 * The environment variable BINARYVIT_KERNELS names other kernels than the best that the processor has, to compare them.
 */
struct TfLiteDelegate* tflite_plugin_create_delegate(const char* const* option_keys, const char* const* option_values,
                                                     size_t num_options, void (*report_error)(const char*));

/* Frees a delegate, after its interpreter. NULL is ignored. */
void tflite_plugin_destroy_delegate(struct TfLiteDelegate* delegate);

/* Returns the name of the kernels that a delegate runs, such as "avx2" or "neon". */
const char* binaryvit_kernels(const struct TfLiteDelegate* delegate);

/* What one operator of the graph has taken, in all inferences since its interpreter was made. */
typedef struct BinaryVitProfileEntry {
  const char* op;       /* such as "LceBconv2d" */
  const char* output;   /* name of its output tensor */
  uint64_t calls;       /* how many times it ran */
  uint64_t nanoseconds; /* wall-clock time of all calls */
} BinaryVitProfileEntry;

/* Writes up to `capacity` entries, in the graph's order, and returns how many there are: one for each operator that the
 * delegate runs, or none without the option profile=1. The texts live as long as the interpreter.
 */
size_t binaryvit_profile(const struct TfLiteDelegate* delegate, BinaryVitProfileEntry* entries, size_t capacity);

#ifdef __cplusplus
}
#endif

#endif /* BINARYVIT_RUNTIME_H_ */
