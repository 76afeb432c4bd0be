package org.binaryvit.classify

import android.graphics.Bitmap
import android.graphics.Color
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.exp
import kotlin.math.max
import kotlin.math.min
import org.binaryvit.runtime.BinaryVitDelegate
import org.tensorflow.lite.Interpreter

data class Prediction(val label: String, val probability: Float)

/**
 * A model with one input, float32 (1, height, width, 3), and one output, (1, classes).
 *
 * @param model the file's content, in a direct buffer of the native byte order.
 */
class Classifier(model: ByteBuffer, threads: Int) : AutoCloseable {
    private val metadata = Metadata.read(model)
    private val delegate = BinaryVitDelegate()
    private val interpreter = Interpreter(model, Interpreter.Options().setNumThreads(threads).addDelegate(delegate))
    private val height = interpreter.getInputTensor(0).shape()[1]
    private val width = interpreter.getInputTensor(0).shape()[2]
    private val classes = interpreter.getOutputTensor(0).shape()[1]

    fun classify(image: Bitmap, top: Int = 5): List<Prediction> {
        val scores = Array(1) { FloatArray(classes) }
        interpreter.run(prepare(image), scores)
        val probabilities = if (metadata.outputsAreProbabilities) scores[0] else softmax(scores[0])
        return probabilities.indices.sortedByDescending { probabilities[it] }.take(top).map {
            Prediction(metadata.classNames?.get(it) ?: it.toString(), probabilities[it])
        }
    }

    override fun close() {
        interpreter.close()
        delegate.close()
    }

    /** Crops to the aspect ratio, resizes, crops in the center and normalizes, as in training but for the filter. */
    private fun prepare(image: Bitmap): ByteBuffer {
        val (rows, columns) = metadata.resized(height, width)
        val partHeight = max(1, min(image.height, (image.width.toLong() * rows / columns).toInt()))
        val partWidth = max(1, min(image.width, (image.height.toLong() * columns / rows).toInt()))
        val part = Bitmap.createBitmap(
            image, (image.width - partWidth) / 2, (image.height - partHeight) / 2, partWidth, partHeight)
        val resized = shrink(part, columns, rows)
        val pixels = IntArray(height * width)
        resized.getPixels(pixels, 0, width, (resized.width - width) / 2, (resized.height - height) / 2, width, height)
        val input = ByteBuffer.allocateDirect(4 * 3 * pixels.size).order(ByteOrder.nativeOrder())
        for (pixel in pixels) {
            val channels = intArrayOf(Color.red(pixel), Color.green(pixel), Color.blue(pixel))
            for (c in 0 until 3) input.putFloat((channels[c] / 255f - metadata.mean[c]) / metadata.std[c])
        }
        input.rewind()
        return input
    }

    /** Android's own filter looks at four pixels, which isn't enough to shrink a photo: halve it as often as possible. */
    private fun shrink(image: Bitmap, width: Int, height: Int): Bitmap {
        var result = image
        while (result.width >= 2 * width && result.height >= 2 * height) {
            result = Bitmap.createScaledBitmap(result, result.width / 2, result.height / 2, true)
        }
        return Bitmap.createScaledBitmap(result, width, height, true)
    }

    private fun softmax(logits: FloatArray): FloatArray {
        val largest = logits.max()
        val exponentials = FloatArray(logits.size) { exp(logits[it] - largest) }
        val sum = exponentials.sum()
        return FloatArray(logits.size) { exponentials[it] / sum }
    }
}
