pluginManagement {
    repositories {
        google()
        mavenCentral()
    }
}

dependencyResolutionManagement {
    repositories {
        google()
        mavenCentral()
        maven(uri("../../dist/maven")) // `make aar`
    }
}

rootProject.name = "binaryvit-classify"
include(":app")
