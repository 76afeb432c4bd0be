/* Uses binaryvit_runtime.h as a program in C would; test_header.py compiles and runs it. */
#include <binaryvit_runtime.h>
#include <stdio.h>

static void report(const char* message) { printf("%s\n", message); }

int main(void) {
  const char* keys[] = {"num_threads", "profile"};
  const char* values[] = {"2", "1"};
  const char* wrong[] = {"0", "1"};
  struct TfLiteDelegate* delegate = tflite_plugin_create_delegate(keys, values, 2, report);
  BinaryVitProfileEntry entry;
  if (!delegate) return 1;
  printf("%s kernels, %d operators\n", binaryvit_kernels(delegate), (int)binaryvit_profile(delegate, &entry, 1));
  tflite_plugin_destroy_delegate(delegate);
  if (tflite_plugin_create_delegate(keys, wrong, 2, report)) return 1;
  if (tflite_plugin_create_delegate(keys, wrong, 1, NULL)) return 1;
  if (tflite_plugin_create_delegate(keys + 1, values, 1, report)) return 1; /* profile=2 */
  delegate = tflite_plugin_create_delegate(NULL, NULL, 0, NULL);
  tflite_plugin_destroy_delegate(delegate);
  tflite_plugin_destroy_delegate(NULL);
  return delegate ? 0 : 1;
}
