package org.binaryvit.classify

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import org.binaryvit.runtime.BinaryVitDelegate
import org.tensorflow.lite.Interpreter

/** A model with one input and one output of float32, which LiteRT 1's interpreter runs. */
class Model(content: ByteBuffer, threads: Int) : AutoCloseable {
    private val delegate = BinaryVitDelegate()
    private val interpreter =
        try {
            Interpreter(content, Interpreter.Options().setNumThreads(threads).addDelegate(delegate))
        } catch (error: Throwable) {
            delegate.close()
            throw error
        }

    val inputShape: IntArray = interpreter.getInputTensor(0).shape()
    val outputShape: IntArray = interpreter.getOutputTensor(0).shape()
    private val inputs = floats(inputShape)
    private val outputs = floats(outputShape)

    fun run(input: FloatArray, output: FloatArray) {
        inputs.rewind()
        outputs.rewind()
        inputs.put(input).rewind()
        interpreter.run(inputs, outputs)
        outputs.rewind()
        outputs.get(output)
    }

    override fun close() {
        interpreter.close()
        delegate.close()
    }

    private fun floats(shape: IntArray): FloatBuffer =
        ByteBuffer.allocateDirect(4 * shape.reduce(Int::times)).order(ByteOrder.nativeOrder()).asFloatBuffer()
}
