package org.binaryvit.classify

import kotlin.math.abs
import kotlin.math.ceil
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min

/**
 * From an image to a model's input, as `ImagePreprocessor` of keras_binaryvit does it in training.
 *
 * The largest centered part with the aspect ratio of `resizeSize` is resized to it with antialiasing, what the model takes is
 * cropped in its center, and each channel becomes `(pixel / 255 - mean) / std`.
 *
 * @param mean of each channel, on the scale 0 to 1: one value for grayscale images, three for RGB.
 * @param std likewise.
 * @param resizeSize height and width; the short side of what has the model's aspect ratio; or empty, for what it takes.
 * @throws IllegalArgumentException any of them is out of its range.
 */
class Preprocessor(
    private val mean: List<Double>,
    private val std: List<Double>,
    private val resizeSize: List<Int>,
    private val bicubic: Boolean,
) {
    init {
        require(mean.size == std.size && (mean.size == 1 || mean.size == 3)) { "it has no mean and std of 1 or 3 channels" }
        require((mean + std).all { it.isFinite() } && std.all { it > 0 }) { "its mean and std are $mean and $std" }
        require(resizeSize.size <= 2 && resizeSize.all { it in 1..10_000 }) { "its resize_size is $resizeSize" }
    }

    val channels = mean.size

    /** Height and width to resize to, for a model that takes [height] x [width] pixels. */
    private fun resized(height: Int, width: Int): Pair<Int, Int> {
        if (resizeSize.size == 2) return resizeSize[0] to resizeSize[1]
        val short = min(height, width)
        val side = resizeSize.firstOrNull() ?: short
        return side * height / short to side * width / short
    }

    /**
     * By how much the decoder may shrink a photo of [imageWidth] x [imageHeight] pixels: it keeps twice the pixels that are
     * needed in each direction, and enough to show.
     */
    fun sampleSize(imageWidth: Int, imageHeight: Int, height: Int, width: Int): Int {
        val (rows, columns) = resized(height, width)
        return max(1, min(imageHeight / max(2 * rows, SHOWN), imageWidth / max(2 * columns, SHOWN)))
    }

    /**
     * @param pixels of the image, as `Bitmap.getPixels` has them: row by row, 0xAARRGGBB.
     * @return what a model takes, (height, width, channels).
     * @throws IllegalArgumentException the model takes more pixels than `resizeSize` gives.
     */
    fun prepare(pixels: IntArray, imageWidth: Int, imageHeight: Int, height: Int, width: Int): FloatArray {
        val (rows, columns) = resized(height, width)
        require(height <= rows && width <= columns) { "the model takes $height x $width pixels, resized to $rows x $columns" }
        val partHeight = max(1L, min(imageHeight.toLong(), imageWidth.toLong() * rows / columns)).toInt()
        val partWidth = max(1L, min(imageWidth.toLong(), imageHeight.toLong() * columns / rows)).toInt()
        val vertical = taps(partHeight, rows, (rows - height) / 2, height, (imageHeight - partHeight) / 2)
        val horizontal = taps(partWidth, columns, (columns - width) / 2, width, (imageWidth - partWidth) / 2)
        val first = vertical.minOf { it.start }
        val lines = Array(vertical.maxOf { it.start + it.weights.size } - first) { line ->
            shrink(pixels, (first + line) * imageWidth, horizontal)
        }
        val result = FloatArray(height * width * channels)
        for ((row, tap) in vertical.withIndex()) {
            for (index in 0 until width * channels) {
                var sum = 0f
                for ((offset, weight) in tap.weights.withIndex()) sum += weight * lines[tap.start - first + offset][index]
                val channel = index % channels
                val pixel = sum.coerceIn(0f, 255f) / 255f
                result[row * width * channels + index] = (pixel - mean[channel].toFloat()) / std[channel].toFloat()
            }
        }
        return result
    }

    /** Resizes one line of an image, which starts at [offset]. */
    private fun shrink(pixels: IntArray, offset: Int, taps: List<Tap>): FloatArray {
        val result = FloatArray(taps.size * channels)
        for ((column, tap) in taps.withIndex()) {
            for ((index, weight) in tap.weights.withIndex()) {
                val pixel = pixels[offset + tap.start + index]
                val red = pixel shr 16 and 255
                val green = pixel shr 8 and 255
                val blue = pixel and 255
                if (channels == 1) { // luma as Pillow has it
                    result[column] += weight * (19595 * red + 38470 * green + 7471 * blue + 32768 shr 16)
                } else {
                    result[3 * column] += weight * red
                    result[3 * column + 1] += weight * green
                    result[3 * column + 2] += weight * blue
                }
            }
        }
        return result
    }

    /** The pixels that make one of the resized image, from [start] on. */
    private class Tap(val start: Int, val weights: FloatArray)

    /** What makes [count] pixels, from the one at [skipped] on, of [length] pixels resized to [size] that start at [origin]. */
    private fun taps(length: Int, size: Int, skipped: Int, count: Int, origin: Int): List<Tap> {
        val step = length.toDouble() / size
        val scale = max(step, 1.0) // a wider kernel for fewer pixels: antialiasing
        val reach = scale * if (bicubic) 2 else 1
        return List(count) { index ->
            val center = (skipped + index + 0.5) * step - 0.5
            val start = max(0, ceil(center - reach).toInt())
            val end = min(length - 1, floor(center + reach).toInt())
            val weights = DoubleArray(end - start + 1) { kernel(abs(start + it - center) / scale) }
            val sum = weights.sum()
            Tap(origin + start, FloatArray(weights.size) { (weights[it] / sum).toFloat() })
        }
    }

    /** The triangle, or Keys' cubic with a = -1/2. */
    private fun kernel(x: Double) =
        when {
            !bicubic -> max(0.0, 1 - x)
            x < 1 -> (1.5 * x - 2.5) * x * x + 1
            x < 2 -> ((-0.5 * x + 2.5) * x - 4) * x + 2
            else -> 0.0
        }

    private companion object {
        const val SHOWN = 512
    }
}
