package org.binaryvit.classify

import java.nio.ByteBuffer
import kotlin.math.exp

data class Prediction(val label: String, val probability: Float)

/**
 * A model with one input, float32 (1, height, width, channels), and one output, (1, classes).
 *
 * @param content the file's, in a direct buffer of the native byte order.
 * @throws IllegalArgumentException it is damaged, or doesn't say how to prepare images, or is no such model.
 */
class Classifier(content: ByteBuffer, threads: Int) : AutoCloseable {
    private val metadata = Metadata.read(content)
    private val model = Model(content, threads)

    init {
        try {
            val (input, output) = model.inputShape.toList() to model.outputShape.toList()
            require(input.size == 4 && input[0] == 1 && input[3] == metadata.preprocessor.channels) {
                "a classifier takes (1, height, width, ${metadata.preprocessor.channels}), but this model takes $input"
            }
            require(output.size == 2 && output[1] == (metadata.classNames?.size ?: output[1])) {
                "a classifier gives (1, ${metadata.classNames?.size ?: "classes"}), but this model gives $output"
            }
        } catch (error: IllegalArgumentException) {
            model.close()
            throw error
        }
    }

    private val height = model.inputShape[1]
    private val width = model.inputShape[2]

    /** By how much a photo may be shrunk while it is decoded. */
    fun sampleSize(imageWidth: Int, imageHeight: Int) =
        metadata.preprocessor.sampleSize(imageWidth, imageHeight, height, width)

    /** @param pixels of an image, as `Bitmap.getPixels` has them. */
    fun classify(pixels: IntArray, imageWidth: Int, imageHeight: Int, top: Int): List<Prediction> {
        val scores = FloatArray(model.outputShape[1])
        model.run(metadata.preprocessor.prepare(pixels, imageWidth, imageHeight, height, width), scores)
        val probabilities = if (metadata.outputsAreProbabilities) scores else softmax(scores)
        return probabilities.indices.sortedByDescending { probabilities[it] }.take(top).map {
            Prediction(metadata.classNames?.get(it) ?: it.toString(), probabilities[it])
        }
    }

    override fun close() = model.close()

    private fun softmax(logits: FloatArray): FloatArray {
        val largest = logits.max()
        val exponentials = FloatArray(logits.size) { exp(logits[it] - largest) }
        val sum = exponentials.sum()
        return FloatArray(logits.size) { exponentials[it] / sum }
    }
}
