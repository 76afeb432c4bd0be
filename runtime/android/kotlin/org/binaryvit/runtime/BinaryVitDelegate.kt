package org.binaryvit.runtime

import org.tensorflow.lite.Delegate

/**
 * Runs the binary operators of one interpreter of LiteRT 1; close it after the interpreter.
 *
 *     val delegate = BinaryVitDelegate()
 *     val interpreter = Interpreter(model, Interpreter.Options().addDelegate(delegate))
 *
 * @throws IllegalStateException there is no memory for it.
 * @throws UnsatisfiedLinkError the app has no library for this processor.
 */
class BinaryVitDelegate : Delegate, AutoCloseable {
    private var handle = create()

    init {
        check(handle != 0L) { "binaryvit-runtime couldn't make a delegate: out of memory" }
    }

    override fun getNativeHandle(): Long = handle

    override fun close() {
        destroy(handle)
        handle = 0
    }

    private companion object {
        init {
            System.loadLibrary("binaryvit_jni")
        }

        @JvmStatic
        private external fun create(): Long

        @JvmStatic
        private external fun destroy(handle: Long)
    }
}
