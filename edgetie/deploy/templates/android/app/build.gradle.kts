plugins {
    id("com.android.application")
}

val unpacked = layout.buildDirectory.dir("onnxruntime")

android {
    namespace = "app.starter"
    compileSdk = 36
    defaultConfig {
        applicationId = "app.starter"
        minSdk = 24
        targetSdk = 36
        versionCode = 1
        versionName = "1.0"
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
        externalNativeBuild {
            cmake {
                arguments("-DORT=${unpacked.get().asFile}")
            }
        }
    }
    externalNativeBuild { cmake { path = file("src/main/cpp/CMakeLists.txt") } }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    androidResources { noCompress += listOf("onnx", "data", "ort", "bin") }
}

// The package contains the C headers and a library for each processor architecture. CMake imports the
// library, and the plugin packages what CMake imports. As a dependency of the app the package would
// bring the same library once more ("2 files found with path lib/arm64-v8a/libonnxruntime.so").
val onnxruntime by configurations.creating
dependencies { onnxruntime("com.microsoft.onnxruntime:onnxruntime-android:{{runtime}}@aar") }
val unpackRuntime by tasks.registering(Copy::class) {
    from(provider { zipTree(onnxruntime.singleFile) })
    include("headers/**", "jni/**")
    into(unpacked)
}
tasks.configureEach { if (name.startsWith("configureCMake")) dependsOn(unpackRuntime) }
