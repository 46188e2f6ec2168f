// The Android starter's Model.kt on a desktop: FOLDER PROMPT MOST prints tokens, then the text.
package app.starter

import java.io.File

fun main(words: Array<String>) {
    Model(File(words[0])).use { model ->
        model.answer(words[1], words[2].toInt(), object : Piece {
            override fun take(text: ByteArray, token: Long, ends: Boolean): Boolean {
                println(token)
                return true
            }
        })
        model.answer(words[1], words[2].toInt()) { part -> print(part); true }
        System.err.println("run by ${model.provider}")
    }
    try {
        Model(File("nowhere"))
    } catch (error: java.io.IOException) {
        System.err.println(error.message)
    }
}
