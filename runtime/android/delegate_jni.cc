// BinaryVitDelegate.kt's functions: a delegate travels through Java as the number of its address.
#include <binaryvit_runtime.h>
#include <jni.h>

#include <cstdint>

extern "C" JNIEXPORT jlong JNICALL Java_org_binaryvit_runtime_BinaryVitDelegate_create(JNIEnv*, jclass) {
  // Without options it has as many threads as its interpreter.
  TfLiteDelegate* delegate = tflite_plugin_create_delegate(nullptr, nullptr, 0, nullptr);
  return static_cast<jlong>(reinterpret_cast<intptr_t>(delegate));
}

extern "C" JNIEXPORT void JNICALL Java_org_binaryvit_runtime_BinaryVitDelegate_destroy(JNIEnv*, jclass, jlong handle) {
  tflite_plugin_destroy_delegate(reinterpret_cast<TfLiteDelegate*>(static_cast<intptr_t>(handle)));
}
