package org.binaryvit.classify

import android.app.Activity
import android.content.Intent
import android.graphics.ImageDecoder
import android.net.Uri
import android.os.Bundle
import android.os.SystemClock
import android.widget.Button
import android.widget.ImageView
import android.widget.LinearLayout
import android.widget.TextView
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.concurrent.Executors

/** Shows an image of the gallery and the five most probable classes. */
class MainActivity : Activity() {
    private val worker = Executors.newSingleThreadExecutor() // an interpreter belongs to one thread at a time
    private var classifier: Classifier? = null
    private lateinit var picture: ImageView
    private lateinit var result: TextView

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        picture = ImageView(this)
        result = TextView(this).apply { textSize = 18f }
        val choose = Button(this).apply {
            text = "Choose an image"
            setOnClickListener {
                val intent = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("image/*")
                startActivityForResult(intent, CHOOSE)
            }
        }
        val layout = LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            fitsSystemWindows = true
            addView(choose)
            addView(picture, LinearLayout.LayoutParams(LinearLayout.LayoutParams.MATCH_PARENT, 0, 1f))
            addView(result)
        }
        setContentView(layout)
    }

    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        super.onActivityResult(requestCode, resultCode, data)
        val image = data?.data
        if (requestCode == CHOOSE && resultCode == RESULT_OK && image != null) worker.execute { classify(image) }
    }

    override fun onDestroy() {
        worker.execute { classifier?.close() }
        worker.shutdown()
        super.onDestroy()
    }

    private fun classify(image: Uri) {
        try {
            val source = ImageDecoder.createSource(contentResolver, image)
            val bitmap = ImageDecoder.decodeBitmap(source) { decoder, _, _ ->
                decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE // its pixels are read
            }
            val ready = classifier ?: Classifier(model(), THREADS).also { classifier = it }
            val start = SystemClock.elapsedRealtimeNanos()
            val predictions = ready.classify(bitmap)
            val milliseconds = (SystemClock.elapsedRealtimeNanos() - start) / 1e6
            val lines = predictions.map { "%5.1f %%  %s".format(100 * it.probability, it.label) }
            runOnUiThread {
                picture.setImageBitmap(bitmap)
                result.text = (lines + "%.1f ms".format(milliseconds)).joinToString("\n")
            }
        } catch (error: Exception) {
            runOnUiThread { result.text = error.message ?: error.toString() }
        }
    }

    private fun model(): ByteBuffer {
        val bytes = assets.open("model.tflite").use { it.readBytes() }
        return ByteBuffer.allocateDirect(bytes.size).order(ByteOrder.nativeOrder()).put(bytes).apply { rewind() }
    }

    private companion object {
        const val CHOOSE = 1
        const val THREADS = 4
    }
}
