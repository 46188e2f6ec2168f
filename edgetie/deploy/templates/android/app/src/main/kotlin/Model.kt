package app.starter

import java.io.Closeable
import java.io.File
import java.io.IOException

/** How an answer is generated. What is null is as the model's own settings say. */
data class Options(
    val maxNewTokens: Int? = null,
    /** 0: always the most likely token; 1: as the model learned. */
    val temperature: Double? = null,
    /** Draw among the most likely tokens. */
    val topK: Int? = null,
    /** Draw among those that together reach this probability. */
    val topP: Double? = null,
    /** Above 1: tokens that occurred before are less likely. */
    val repetitionPenalty: Double? = null,
    /** The same one draws the same tokens. */
    val seed: Long? = null,
    /** Texts that end an answer. */
    val stopStrings: List<String>? = null
)

/** How many tokens were read for an answer, those in the cache left out, and its own tokens. */
class Answer(val read: Int, val tokens: LongArray)

/** A language model and a conversation with it, in native code. Use it from one thread at a time. */
class Model @Throws(IOException::class) constructor(folder: File) : Closeable {
    private var native = open(folder.path.toByteArray())

    /** The execution provider that runs the model, and if it is not edgetie's, why. */
    val provider = String(provider(native))

    /**
     * Answers a prompt, which continues the conversation. [show] gets each part of the text, which may
     * be empty, and returns whether to go on.
     */
    @Throws(IOException::class)
    fun answer(prompt: String, options: Options = Options(), show: (String) -> Boolean): Answer {
        check(native != 0L) { "the model is closed" }
        val numbers = options
            .run { listOf<Number?>(maxNewTokens, temperature, topK, topP, repetitionPenalty, seed) }
            .map { it?.toDouble() ?: Double.NaN }.toDoubleArray()
        val stops = options.stopStrings?.joinToString("") { "$it\u0000" }?.toByteArray()
        val result = answer(native, prompt.toByteArray(), numbers, stops, object : Show {
            override fun take(text: ByteArray) = show(String(text))
        })
        return Answer(result[0].toInt(), result.copyOfRange(1, result.size))
    }

    /** Begins a new conversation. */
    fun reset() = reset(native)

    override fun close() {
        close(native)
        native = 0
    }

    private interface Show {
        fun take(text: ByteArray): Boolean
    }

    private external fun open(folder: ByteArray): Long
    private external fun close(model: Long)
    private external fun reset(model: Long)
    private external fun provider(model: Long): ByteArray
    private external fun answer(
        model: Long, prompt: ByteArray, numbers: DoubleArray, stops: ByteArray?, show: Show
    ): LongArray

    private companion object {
        init {
            System.loadLibrary("starter")
        }
    }
}
