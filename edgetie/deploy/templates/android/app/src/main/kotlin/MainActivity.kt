package app.starter

import android.app.Activity
import android.os.Bundle
import android.util.Log
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.TextView
import java.io.File
import java.io.IOException
import java.util.concurrent.Executors

/** Shows a conversation with the model, and each answer while it is generated. */
class MainActivity : Activity() {
    private val worker = Executors.newSingleThreadExecutor()
    private var model: Model? = null
    private var answering = false
    @Volatile private var stopped = false

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        val turns = TextView(this).apply { setTextIsSelectable(true) }
        val prompt = EditText(this).apply { setText(R.string.prompt) }
        val send = Button(this).apply { setText(R.string.send) }
        val reset = Button(this).apply { setText(R.string.reset) }
        val column = LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            fitsSystemWindows = true
            setPadding(32, 32, 32, 32)
            for (view in listOf(turns, prompt, send, reset)) addView(view)
        }
        setContentView(ScrollView(this).apply { addView(column) })
        fun show(busy: Boolean) {
            answering = busy
            send.setText(if (busy) R.string.stop else R.string.send)
            reset.isEnabled = !busy
        }
        send.setOnClickListener {
            if (answering) {
                stopped = true
                return@setOnClickListener
            }
            val question = prompt.text.toString()
            turns.append("\n$question\n")
            prompt.setText("")
            stopped = false
            show(true)
            worker.execute {
                answer(question) { part -> runOnUiThread { turns.append(part) } }
                runOnUiThread { turns.append("\n"); show(false) }
            }
        }
        reset.setOnClickListener {
            turns.text = ""
            worker.execute { model?.reset() }
        }
    }

    private fun answer(prompt: String, show: (String) -> Unit) {
        try {
            val opened = model ?: Model(unpack()).also { model = it }
            opened.answer(prompt) { part ->
                show(part)
                !stopped && !isDestroyed
            }
            Log.i("starter", "run by ${opened.provider}")
        } catch (error: IOException) {
            show("\n${error.message}")
        }
    }

    override fun onDestroy() {
        stopped = true
        worker.execute { model?.close() }
        worker.shutdown()
        super.onDestroy()
    }

    /** Copies the model from the package, once, to a folder of files that native code can map. */
    private fun unpack(): File {
        val version = packageManager.getPackageInfo(packageName, 0).lastUpdateTime.toString()
        val all = File(filesDir, "models")
        val folder = File(all, version)
        if (!folder.exists()) {
            all.deleteRecursively()
            val part = File(all, "part")
            File(part, "model").mkdirs()
            for (name in assets.list("model").orEmpty()) {
                assets.open("model/$name").use { from ->
                    File(part, "model/$name").outputStream().use { to -> from.copyTo(to) }
                }
            }
            if (!part.renameTo(folder)) throw IOException("$folder: cannot be written")
        }
        return folder
    }
}
