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

/** Asks the model and shows its answer while it is generated. */
class MainActivity : Activity() {
    private val worker = Executors.newSingleThreadExecutor()
    private var model: Model? = null

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        val prompt = EditText(this).apply { setText(R.string.prompt) }
        val ask = Button(this).apply { setText(R.string.ask) }
        val answer = TextView(this).apply { setTextIsSelectable(true) }
        val column = LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            fitsSystemWindows = true
            setPadding(32, 32, 32, 32)
            addView(prompt)
            addView(ask)
            addView(answer)
        }
        setContentView(ScrollView(this).apply { addView(column) })
        ask.setOnClickListener {
            ask.isEnabled = false
            answer.text = ""
            val question = prompt.text.toString()
            worker.execute {
                try {
                    val opened = model ?: Model(unpack()).also { model = it }
                    opened.answer(question, 256) { part ->
                        runOnUiThread { answer.append(part) }
                        !isDestroyed
                    }
                    Log.i("starter", "run by ${opened.provider}")
                } catch (error: IOException) {
                    runOnUiThread { answer.append("\n${error.message}") }
                }
                runOnUiThread { ask.isEnabled = true }
            }
        }
    }

    override fun onDestroy() {
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
