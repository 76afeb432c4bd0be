package org.binaryvit.classify

/** What to tell the user of an exception or an error. */
fun describe(failure: Throwable): String =
    when (failure) {
        is OutOfMemoryError -> "There isn't enough memory for this image, or for the model."
        is StackOverflowError -> "The file is nested too deeply to be read."
        is LinkageError -> "This app lacks a library for this processor, or for this version of LiteRT: ${failure.message}"
        else -> failure.message ?: failure.toString()
    }
