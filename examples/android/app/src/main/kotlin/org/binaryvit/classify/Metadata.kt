package org.binaryvit.classify

import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.min
import org.json.JSONArray
import org.json.JSONObject

/** How to prepare a model's images, and what its classes are called, as the converter has written it into the file. */
class Metadata(
    val mean: FloatArray,
    val std: FloatArray,
    private val resizeSize: IntArray,
    val outputsAreProbabilities: Boolean,
    val classNames: List<String>?,
) {
    /** Height and width to resize to, for a model that takes [height] x [width] pixels. */
    fun resized(height: Int, width: Int): Pair<Int, Int> {
        if (resizeSize.size == 2) return resizeSize[0] to resizeSize[1]
        val short = min(height, width) // version 1 has the short side
        return resizeSize[0] * height / short to resizeSize[0] * width / short
    }

    companion object {
        /** @throws IllegalArgumentException the file is damaged, or doesn't say how to prepare images. */
        fun read(model: ByteBuffer): Metadata {
            try {
                val text = requireNotNull(Flatbuffer(model).metadata("binaryvit")) { "it says nothing of its images" }
                val content = JSONObject(text)
                val version = content.getInt("version")
                require(version in 1..2) { "its metadata is of version $version; this program reads 1 and 2" }
                return Metadata(
                    floats(content.getJSONArray("mean")),
                    floats(content.getJSONArray("std")),
                    if (version == 1) intArrayOf(content.getInt("resize")) else integers(content.getJSONArray("resize_size")),
                    content.getString("outputs") == "probabilities",
                    content.optJSONArray("labels")?.let { names -> List(names.length()) { names.getString(it) } },
                )
            } catch (error: Exception) {
                throw IllegalArgumentException(
                    "model.tflite can't be used: ${error.message}. Convert a model that has a preprocessor.", error)
            }
        }

        private fun integers(array: JSONArray) = IntArray(array.length()) { array.getInt(it) }

        private fun floats(array: JSONArray) = FloatArray(array.length()) { array.getDouble(it).toFloat() }
    }
}

/** The few fields of a TFLite flatbuffer that lead to its metadata; ByteBuffer checks all bounds. */
private class Flatbuffer(model: ByteBuffer) {
    private val content = model.duplicate().order(ByteOrder.LITTLE_ENDIAN)

    fun metadata(name: String): String? {
        val root = indirect(0)
        val entry = tables(root, METADATA).firstOrNull { text(it, 0) == name } ?: return null
        val buffer = field(entry, 1).let { if (it == 0) 0 else content.getInt(it) }
        return text(tables(root, BUFFERS).elementAt(buffer), 0)
    }

    private fun indirect(position: Int) = position + content.getInt(position)

    /** Position of a table's field, or 0 where it is absent. */
    private fun field(table: Int, number: Int): Int {
        val vtable = table - content.getInt(table)
        val entry = 4 + 2 * number
        val offset = if (entry < content.getShort(vtable)) content.getShort(vtable + entry).toInt() else 0
        return if (offset == 0) 0 else table + offset
    }

    private fun tables(table: Int, number: Int): Sequence<Int> {
        val field = field(table, number)
        if (field == 0) return emptySequence()
        val start = indirect(field)
        return (0 until content.getInt(start)).asSequence().map { indirect(start + 4 + 4 * it) }
    }

    private fun text(table: Int, number: Int): String {
        val field = field(table, number)
        if (field == 0) return ""
        val start = indirect(field)
        val size = content.getInt(start)
        require(size in 0..content.limit() - start - 4) { "it is damaged" }
        val bytes = ByteArray(size)
        content.duplicate().apply { position(start + 4) }.get(bytes)
        return String(bytes, Charsets.UTF_8)
    }

    private companion object {
        const val BUFFERS = 4
        const val METADATA = 6
    }
}
