// The Android starter's Model.kt on a desktop: FOLDER MOST STOP PROMPTS holds a conversation. Prints for
// each turn the tokens read, those written, and the text's bytes, as conversation.c does.
package app.starter

import java.io.File

fun main(words: Array<String>) {
    val options = Options(words[1].toInt(), stopStrings = listOf(words[2]).filter { it.isNotEmpty() })
    Model(File(words[0])).use { model ->
        for (prompt in words.drop(3)) {
            val text = StringBuilder()
            val answer = model.answer(prompt, options) { part -> text.append(part); true }
            val bytes = text.toString().toByteArray().joinToString("") { "%02x".format(it) }
            print("${answer.read}\u001f${answer.tokens.joinToString(" ")}\u001f$bytes\u001e")
        }
        System.err.println("run by ${model.provider}")
    }
    try {
        Model(File("nowhere"))
    } catch (error: java.io.IOException) {
        System.err.println(error.message)
    }
}
