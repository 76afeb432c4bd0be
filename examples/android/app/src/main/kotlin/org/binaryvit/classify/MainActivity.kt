package org.binaryvit.classify

import android.Manifest
import android.graphics.Bitmap
import android.graphics.ImageDecoder
import android.net.Uri
import android.os.Bundle
import android.os.SystemClock
import android.view.View
import android.widget.Button
import android.widget.FrameLayout
import android.widget.ImageView
import android.widget.LinearLayout
import android.widget.TextView
import androidx.activity.ComponentActivity
import androidx.activity.result.contract.ActivityResultContracts
import androidx.camera.core.CameraSelector
import androidx.camera.core.ImageAnalysis
import androidx.camera.core.Preview
import androidx.camera.lifecycle.ProcessCameraProvider
import androidx.camera.view.PreviewView
import java.io.FileNotFoundException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.concurrent.Executors

/** Shows what the camera sees, or an image, the five most probable classes, and how long these took. */
class MainActivity : ComponentActivity() {
    private val worker = Executors.newSingleThreadExecutor() // a model belongs to one thread at a time
    private var classifier: Classifier? = null
    private var camera: ProcessCameraProvider? = null
    private lateinit var preview: PreviewView
    private lateinit var picture: ImageView
    private lateinit var result: TextView

    private val permission = registerForActivityResult(ActivityResultContracts.RequestPermission()) { granted ->
        if (granted) watch() else result.text = "The app may not use the camera. The system's settings can allow it."
    }
    private val chooser = registerForActivityResult(ActivityResultContracts.OpenDocument()) { image ->
        if (image != null) open(image)
    }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        preview = PreviewView(this)
        picture = ImageView(this)
        result = TextView(this).apply { textSize = 18f }
        val live = Button(this).apply {
            text = "Camera"
            setOnClickListener { permission.launch(Manifest.permission.CAMERA) }
        }
        val choose = Button(this).apply {
            text = "Choose an image"
            setOnClickListener { chooser.launch(arrayOf("image/*")) }
        }
        val screen = FrameLayout(this).apply {
            addView(preview)
            addView(picture)
        }
        setContentView(LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            fitsSystemWindows = true // the system's bars lie over the app
            addView(live)
            addView(choose)
            addView(screen, LinearLayout.LayoutParams(LinearLayout.LayoutParams.MATCH_PARENT, 0, 1f))
            addView(result)
        })
    }

    override fun onDestroy() {
        camera?.unbindAll()
        worker.execute { classifier?.close() }
        worker.shutdown()
        super.onDestroy()
    }

    /** Classifies each image of the camera that comes when the last one is done. */
    private fun watch() {
        picture.visibility = View.GONE
        val provider = ProcessCameraProvider.getInstance(this)
        provider.addListener({
            attempt {
                val screen = Preview.Builder().build()
                screen.surfaceProvider = preview.surfaceProvider
                val frames = ImageAnalysis.Builder()
                    .setOutputImageFormat(ImageAnalysis.OUTPUT_IMAGE_FORMAT_RGBA_8888)
                    .setOutputImageRotationEnabled(true)
                    .build()
                frames.setAnalyzer(worker) { frame -> frame.use { attempt { classify(frame.toBitmap()) } } }
                camera = provider.get().apply {
                    unbindAll()
                    bindToLifecycle(this@MainActivity, CameraSelector.DEFAULT_BACK_CAMERA, screen, frames)
                }
            }
        }, mainExecutor)
    }

    private fun open(image: Uri) {
        camera?.unbindAll()
        worker.execute {
            attempt {
                val ready = classifier()
                val bitmap = ImageDecoder.decodeBitmap(ImageDecoder.createSource(contentResolver, image)) { decoder, info, _ ->
                    decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE // its pixels are read
                    decoder.setTargetSampleSize(ready.sampleSize(info.size.width, info.size.height))
                }
                runOnUiThread {
                    picture.setImageBitmap(bitmap)
                    picture.visibility = View.VISIBLE
                }
                classify(bitmap)
            }
        }
    }

    private fun classify(image: Bitmap) {
        val ready = classifier()
        val start = SystemClock.elapsedRealtimeNanos()
        val pixels = IntArray(image.width * image.height)
        image.getPixels(pixels, 0, image.width, 0, 0, image.width, image.height)
        val predictions = ready.classify(pixels, image.width, image.height, top = 5)
        val milliseconds = (SystemClock.elapsedRealtimeNanos() - start) / 1e6
        val lines = predictions.map { "%5.1f %%  %s".format(100 * it.probability, it.label) }
        runOnUiThread { result.text = (lines + "%.1f ms".format(milliseconds)).joinToString("\n") }
    }

    private fun classifier() = classifier ?: Classifier(model(), THREADS).also { classifier = it }

    private fun model(): ByteBuffer {
        val bytes = try {
            assets.open("model.tflite").use { it.readBytes() }
        } catch (error: FileNotFoundException) {
            throw IllegalStateException("The app has no app/src/main/assets/model.tflite; docs/android.md says how to make it.")
        }
        return ByteBuffer.allocateDirect(bytes.size).order(ByteOrder.nativeOrder()).put(bytes).apply { rewind() }
    }

    /** Shows what goes wrong, whatever it is, and stops the camera. */
    private fun attempt(action: () -> Unit) {
        try {
            action()
        } catch (failure: Throwable) {
            runOnUiThread {
                camera?.unbindAll()
                result.text = describe(failure)
            }
        }
    }

    private companion object {
        const val THREADS = 4
    }
}
