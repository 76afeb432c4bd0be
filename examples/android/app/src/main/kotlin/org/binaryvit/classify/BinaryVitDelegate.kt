package org.binaryvit.classify

import org.tensorflow.lite.Delegate

/** Runs the binary operators of one interpreter; close it after the interpreter. */
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

    companion object {
        init {
            System.loadLibrary("binaryvit_android")
        }

        @JvmStatic
        private external fun create(): Long

        @JvmStatic
        private external fun destroy(handle: Long)
    }
}
