package org.binaryvit.runtime

import java.nio.ByteBuffer

/**
 * A model that LiteRT 2 compiles and runs, with binaryvit-runtime as an accelerator for the CPU.
 *
 * LiteRT 2 takes no delegates from Java, so this calls its C functions, of which some are internal: it has been tried with
 * version 2.3.0 alone. The app depends on `com.google.ai.edge.litert:litert`, which brings `libLiteRt.so`.
 *
 * @param model the file's content, in a direct buffer that nothing changes; one float32 input and one float32 output.
 * @param threads of the binary operators, 1 to 64.
 * @throws IllegalArgumentException the buffer isn't direct, or the number of threads is out of range.
 * @throws IllegalStateException LiteRT can't run the model; the message says which of its functions has failed.
 * @throws UnsatisfiedLinkError the app has no `libLiteRt.so`, or one without these functions.
 */
class LiteRt2Model(private val model: ByteBuffer, threads: Int) : AutoCloseable {
    private var handle: Long

    init {
        require(model.isDirect) { "the model must be in a direct ByteBuffer" }
        require(threads in 1..64) { "the number of threads must be 1 to 64, but is $threads" }
        handle = synchronized(LiteRt2Model::class.java) { create(model, threads) }
    }

    val inputShape: IntArray = shape(handle, true)
    val outputShape: IntArray = shape(handle, false)

    /** Runs the model on [input], and writes what it computes to [output]; both have a value for each of the tensor's. */
    fun run(input: FloatArray, output: FloatArray) {
        check(handle != 0L) { "the model has been closed" }
        run(handle, input, output)
    }

    override fun close() {
        destroy(handle)
        handle = 0
    }

    private companion object {
        init {
            System.loadLibrary("binaryvit_litert2")
        }

        @JvmStatic
        private external fun create(model: ByteBuffer, threads: Int): Long

        @JvmStatic
        private external fun shape(handle: Long, ofInput: Boolean): IntArray

        @JvmStatic
        private external fun run(handle: Long, input: FloatArray, output: FloatArray)

        @JvmStatic
        private external fun destroy(handle: Long)
    }
}
