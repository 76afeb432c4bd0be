package org.binaryvit.classify

/**
 * Reads JSON: objects are maps, arrays lists, numbers doubles, and null is null.
 *
 * Android's own `JSONObject` calls itself for each bracket and has no limit, so that a damaged or hostile file overflows the
 * stack.
 *
 * @throws IllegalArgumentException the text isn't JSON, or is nested more than [MAX_DEPTH] deep.
 */
internal class Json(private val text: String) {
    private var position = 0

    fun read(): Any? {
        val result = value(0)
        space()
        require(position == text.length) { wrong() }
        return result
    }

    private fun value(depth: Int): Any? {
        require(depth <= MAX_DEPTH) { "its metadata is nested more than $MAX_DEPTH deep" }
        space()
        return when (text.getOrNull(position)) {
            '{' -> items('}') { string().also { expect(":") } to value(depth + 1) }.toMap()
            '[' -> items(']') { value(depth + 1) }
            '"' -> string()
            't' -> true.also { expect("true") }
            'f' -> false.also { expect("false") }
            'n' -> null.also { expect("null") }
            else -> number()
        }
    }

    private fun <T> items(end: Char, item: () -> T): List<T> {
        val result = mutableListOf<T>()
        position++
        space()
        while (text.getOrNull(position) != end) {
            if (result.isNotEmpty()) expect(",")
            result += item()
            space()
        }
        position++
        return result
    }

    private fun string(): String {
        expect("\"")
        val result = StringBuilder()
        while (true) {
            val next = text.getOrNull(position++)
            require(next != null && next >= ' ') { wrong() }
            when (next) {
                '"' -> return result.toString()
                '\\' -> result.append(escaped())
                else -> result.append(next)
            }
        }
    }

    private fun escaped(): Char =
        when (val kind = text.getOrNull(position++)) {
            '"', '\\', '/' -> kind
            'b' -> '\b'
            'f' -> '\u000C'
            'n' -> '\n'
            'r' -> '\r'
            't' -> '\t'
            'u' -> {
                val digits = text.substring(position, minOf(position + 4, text.length))
                require(HEXADECIMAL.matches(digits)) { wrong() }
                position += 4
                digits.toInt(16).toChar()
            }
            else -> throw IllegalArgumentException(wrong())
        }

    private fun number(): Double {
        val match = NUMBER.matchAt(text, position)
        requireNotNull(match) { wrong() }
        position = match.range.last + 1
        return match.value.toDouble()
    }

    private fun expect(what: String) {
        space()
        require(text.startsWith(what, position)) { wrong() }
        position += what.length
    }

    private fun space() {
        while (position < text.length && text[position] in " \t\r\n") position++
    }

    private fun wrong() = "its metadata isn't JSON at character $position"

    private companion object {
        const val MAX_DEPTH = 8
        val HEXADECIMAL = Regex("[0-9a-fA-F]{4}")
        val NUMBER = Regex("-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][+-]?[0-9]+)?")
    }
}
