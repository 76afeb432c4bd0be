plugins {
    id("com.android.application") // compiles Kotlin too, from version 9 on
}

android {
    namespace = "org.binaryvit.classify"
    compileSdk = 36

    defaultConfig {
        applicationId = "org.binaryvit.classify"
        minSdk = 28 // ImageDecoder, which turns photos upright
        targetSdk = 36
        versionCode = 1
        versionName = "0.1"
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }

    // Of LiteRT: each has its Model.kt in src/.
    flavorDimensions += "litert"
    productFlavors {
        create("litert1") { dimension = "litert" }
        create("litert2") { dimension = "litert" }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

dependencies {
    implementation("org.binaryvit:binaryvit-runtime:0.1.0")
    "litert1Implementation"("com.google.ai.edge.litert:litert:1.4.2")
    "litert2Implementation"("com.google.ai.edge.litert:litert:2.3.0") // the one that LiteRt2Model has been tried with
    implementation("androidx.activity:activity:1.11.0")
    implementation("androidx.camera:camera-camera2:1.5.1")
    implementation("androidx.camera:camera-lifecycle:1.5.1")
    implementation("androidx.camera:camera-view:1.5.1")
}
