package org.binaryvit.classify

import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * What a model's file says of its images and classes, as the converter has written it.
 *
 * @property outputsAreProbabilities otherwise they are logits.
 * @property classNames in the order of the outputs, or null.
 */
class Metadata(
    val preprocessor: Preprocessor,
    val outputsAreProbabilities: Boolean,
    val classNames: List<String>?,
) {
    companion object {
        /** @throws IllegalArgumentException the file is damaged, or doesn't say how to prepare images. */
        fun read(model: ByteBuffer): Metadata {
            try {
                val text = requireNotNull(Flatbuffer(model).metadata("binaryvit")) { "it says nothing of its images" }
                return read(requireNotNull(Json(text).read() as? Map<*, *>) { "its metadata is no object" })
            } catch (error: Exception) { // such as ByteBuffer's, where a position is outside of the file
                throw IllegalArgumentException(
                    "model.tflite can't be used: ${(error as? IllegalArgumentException)?.message ?: error}. Convert a model that has a preprocessor.", error)
            }
        }

        private fun read(content: Map<*, *>): Metadata {
            val version = content["version"] as? Double
            require(version == 1.0 || version == 2.0) { "its metadata is of version $version; this program reads 1 and 2" }
            val interpolation = content["interpolation"] ?: "bilinear"
            require(interpolation == "bilinear" || interpolation == "bicubic") { "its interpolation is $interpolation" }
            val outputs = content["outputs"] ?: "logits"
            require(outputs == "logits" || outputs == "probabilities") { "its outputs are $outputs" }
            val size = content["resize_size"] ?: content["resize"] // version 1 has the short side
            val sides = if (size == null) emptyList() else numbers(size as? List<*> ?: listOf(size), "resize_size")
            require((size !is List<*> || size.size == 2) && sides.all { it % 1 == 0.0 }) { "its resize_size is $size" }
            val preprocessor = Preprocessor(
                numbers(content["mean"], "mean"),
                numbers(content["std"], "std"),
                sides.map { it.toInt() },
                bicubic = interpolation == "bicubic",
            )
            val names = content["labels"]
            require(names == null || names is List<*> && names.all { it is String }) { "its labels are no list of texts" }
            return Metadata(preprocessor, outputs == "probabilities", names?.map { it as String })
        }

        private fun numbers(content: Any?, name: String): List<Double> {
            require(content is List<*> && content.all { it is Double }) { "it has no numbers for $name" }
            return content.map { it as Double }
        }
    }
}

/** The few fields of a TFLite flatbuffer that lead to its metadata; ByteBuffer checks all bounds. */
private class Flatbuffer(model: ByteBuffer) {
    private val content = model.duplicate().order(ByteOrder.LITTLE_ENDIAN)

    init {
        require(content.limit() >= 8 && content.getInt(4) == IDENTIFIER) { "it is no TFLite flatbuffer" }
    }

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
        val bytes = content.duplicate().apply { position(start + 4).limit(start + 4 + size) }
        return Charsets.UTF_8.newDecoder().decode(bytes).toString()
    }

    private companion object {
        const val IDENTIFIER = 0x334C4654 // "TFL3"
        const val BUFFERS = 4
        const val METADATA = 6
    }
}
