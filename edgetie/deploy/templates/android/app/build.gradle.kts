plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

val runtime = "com.microsoft.onnxruntime:onnxruntime-android:{{runtime}}"
val unpacked = layout.buildDirectory.dir("onnxruntime")

android {
    namespace = "app.starter"
    compileSdk = 35
    defaultConfig {
        applicationId = "app.starter"
        minSdk = 24
        targetSdk = 35
        versionCode = 1
        versionName = "1.0"
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
        externalNativeBuild {
            cmake {
                arguments("-DORT=${unpacked.get().asFile}", "-DANDROID_SUPPORT_FLEXIBLE_PAGE_SIZES=ON")
            }
        }
    }
    externalNativeBuild { cmake { path = file("src/main/cpp/CMakeLists.txt") } }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    kotlinOptions { jvmTarget = "17" }
    androidResources { noCompress += listOf("onnx", "data", "ort", "bin") }
}

// the package contains the C headers and a library for each processor architecture
val library by configurations.creating
dependencies {
    implementation(runtime)
    library("$runtime@aar")
}
val unpackRuntime by tasks.registering(Copy::class) {
    from(provider { zipTree(library.singleFile) })
    include("headers/**", "jni/**")
    into(unpacked)
}
tasks.configureEach { if (name.startsWith("configureCMake")) dependsOn(unpackRuntime) }
