package app.starter

import java.io.Closeable
import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.CharBuffer
import java.nio.charset.CodingErrorAction

/** Receives an answer while it is generated. */
interface Piece {
    /** [text] is UTF-8 and may end within a character; [ends]: the token ends the answer. Returns whether to go on. */
    fun take(text: ByteArray, token: Long, ends: Boolean): Boolean
}

/** A language model and its tokenizer, in native code. Use it from one thread at a time. */
class Model @Throws(IOException::class) constructor(folder: File) : Closeable {
    private var native = open(folder.path.toByteArray())

    /** The execution provider that runs the model, and if it is not edgetie's, why. */
    val provider = String(provider(native))

    /** Streams the tokens of the answer, always the most likely one. */
    @Throws(IOException::class)
    fun answer(prompt: String, most: Int, piece: Piece) {
        check(native != 0L) { "the model is closed" }
        answer(native, prompt.toByteArray(), most.toLong(), piece)
    }

    /** Streams the answer's text; [show] gets each part of it and returns whether to go on. */
    @Throws(IOException::class)
    fun answer(prompt: String, most: Int, show: (String) -> Boolean) {
        val decoder = Text()
        answer(prompt, most, object : Piece {
            override fun take(text: ByteArray, token: Long, ends: Boolean) =
                !ends && show(decoder.add(text))
        })
    }

    override fun close() {
        close(native)
        native = 0
    }

    private external fun open(folder: ByteArray): Long
    private external fun close(model: Long)
    private external fun provider(model: Long): ByteArray
    private external fun answer(model: Long, prompt: ByteArray, most: Long, piece: Piece)

    private companion object {
        init {
            System.loadLibrary("starter")
        }
    }
}

/** Decodes UTF-8 that comes in parts, which may end within a character. */
private class Text {
    private val decoder = Charsets.UTF_8.newDecoder()
        .onMalformedInput(CodingErrorAction.REPLACE)
        .onUnmappableCharacter(CodingErrorAction.REPLACE)
    private var rest = ByteArray(0)

    fun add(bytes: ByteArray): String {
        val input = ByteBuffer.wrap(rest + bytes)
        val output = CharBuffer.allocate(input.remaining())
        decoder.decode(input, output, false)
        rest = ByteArray(input.remaining()).also { input.get(it) }
        output.flip()
        return output.toString()
    }
}
