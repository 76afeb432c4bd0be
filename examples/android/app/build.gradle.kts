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

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

dependencies {
    implementation("org.binaryvit:binaryvit-runtime:0.1.0")
    implementation("com.google.ai.edge.litert:litert:1.4.2") // 2 takes no delegates from Java
}
