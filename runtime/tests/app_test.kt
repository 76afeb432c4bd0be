// Runs the example app's classes, but for the screen, on a JVM: does what each line of the standard input asks for and prints
// a line on it. test_kotlin.py says what must come out.
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.binaryvit.classify.Classifier
import org.binaryvit.classify.Metadata
import org.binaryvit.classify.describe
import org.binaryvit.runtime.LiteRt2Model

fun main() {
    for (line in generateSequence(::readlnOrNull)) {
        val words = line.split("\t")
        println(try { answer(words[0], words.drop(1)) } catch (failure: Throwable) { describe(failure) }.replace("\n", " "))
    }
}

private fun answer(what: String, words: List<String>): String {
    val numbers = words.mapNotNull { it.toIntOrNull() }
    val model = if (numbers.size < words.size) load(words[0]) else ByteBuffer.allocate(0)
    return when (what) {
        "names" -> Metadata.read(model).run { "$classNames, ${preprocessor.channels}, $outputsAreProbabilities" }
        "damaged" -> damaged(File(words[0]).readBytes())
        "sample" -> numbers.let { (w, h, height, width) -> Metadata.read(model).preprocessor.sampleSize(w, h, height, width) }.toString()
        "prepare" -> {
            val (imageWidth, imageHeight, height, width) = numbers
            Metadata.read(model).preprocessor.prepare(pixels(words[1]), imageWidth, imageHeight, height, width).joinToString(" ")
        }
        "classify" -> Classifier(model, 1).use { it.classify(pixels(words[1]), numbers[0], numbers[1], top = 1) }.single()
            .run { "$label\t$probability" }
        "run" -> LiteRt2Model(model, numbers[0]).use { runner ->
            val values = load(words[1]).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
            val input = FloatArray(values.remaining()).also { values.get(it) }
            val output = FloatArray(runner.outputShape.reduce(Int::times)).also { runner.run(input, it) }
            output.joinToString(" ")
        }
        "fail" -> throw listOf(OutOfMemoryError(), StackOverflowError(), UnsatisfiedLinkError("no libx"), Exception("plain"))[numbers[0]]
        else -> error("no such command: $what")
    }
}

/** For each copy with one other byte, or cut short: 1 if it is refused with an IllegalArgumentException, 0 if it is read. */
private fun damaged(content: ByteArray): String {
    val copies = content.indices.flatMap { at ->
        listOf(0, 1, 0x7f, 0x80, 0xff).map { content.clone().apply { set(at, it.toByte()) } } + content.copyOf(at)
    }
    return copies.joinToString("") {
        try {
            "0".also { _ -> Metadata.read(ByteBuffer.wrap(it)) }
        } catch (_: IllegalArgumentException) {
            "1"
        }
    }
}

private fun load(path: String): ByteBuffer {
    val bytes = File(path).readBytes()
    return ByteBuffer.allocateDirect(bytes.size).order(ByteOrder.nativeOrder()).put(bytes).apply { rewind() }
}

private fun pixels(path: String): IntArray =
    load(path).order(ByteOrder.LITTLE_ENDIAN).asIntBuffer().let { buffer -> IntArray(buffer.remaining()).also { buffer.get(it) } }
