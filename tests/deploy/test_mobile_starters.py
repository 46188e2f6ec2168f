"""The starters for phones, as far as they can be checked without one."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from starters import (
    PROMPTS,
    SUPPORT,
    TOKENS,
    assert_conversation,
    expected,
    headers,
    library,
    read_turns,
    run,
)

from edgetie import deploy_model

__all__ = ["headers", "library"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def android(real_int8: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("android") / "app"
    deploy_model(real_int8, "android", target)
    return target


def test_android_gives_the_same_tokens_on_a_desktop(
    android: Path, real_int8: Path, library: Path, tmp_path: Path
) -> None:
    """Its CMakeLists.txt, its C and its Model.kt, on a Java machine."""
    compiler, java = shutil.which("kotlinc"), shutil.which("javac")
    if compiler is None or java is None:
        pytest.skip("needs kotlinc and a JDK")
    jdk = Path(java).resolve().parents[1]
    runtime, abi = tmp_path / "onnxruntime", platform.machine()
    (runtime / "jni").mkdir(parents=True)
    (runtime / "headers").symlink_to(library / "include")
    (runtime / "jni" / abi).symlink_to(library / "lib")
    code = android / "app" / "src" / "main"
    flags = f"-Werror -I{jdk}/include -I{jdk}/include/linux"
    cmake = Path(sys.executable).parent / "cmake"
    run(
        [cmake, "-S", code / "cpp", "-B", "native", f"-DORT={runtime}", f"-DANDROID_ABI={abi}",
         f"-DCMAKE_C_FLAGS={flags}"],
        tmp_path,
    )  # fmt: skip
    run([cmake, "--build", "native"], tmp_path)
    run(
        [compiler, code / "kotlin" / "Model.kt", SUPPORT / "desktop.kt",
         "-d", "classes"],
        tmp_path,
    )  # fmt: skip
    done = subprocess.run(
        ["kotlin", "-J-Djava.library.path=native", "-J-Dfile.encoding=UTF-8", "-cp", "classes",
         "app.starter.DesktopKt", code / "assets", str(TOKENS), "", *PROMPTS],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True,
        env=os.environ | {"LD_LIBRARY_PATH": f"{library / 'lib'}:{tmp_path / 'native'}"},
    )  # fmt: skip
    assert_conversation(read_turns(done.stdout), expected(real_int8))
    assert re.search(r"^run by edgetie \(\d{3} of \d+ nodes\)$", done.stderr, re.MULTILINE)
    assert "nowhere/model/tokenizer.bin: cannot be read" in done.stderr


def problems(language: Any, path: Path) -> list[str]:
    """Places that are not of the language's grammar."""
    import tree_sitter

    tree = tree_sitter.Parser(tree_sitter.Language(language)).parse(path.read_bytes())
    found, left = [], [tree.root_node]
    while left:
        node = left.pop()
        if node.is_error or node.is_missing:
            found.append(f"{path.name}:{node.start_point[0] + 1}: {node.text!r}")
        left += node.children
    return found


def test_android_is_kotlin(android: Path) -> None:
    import tree_sitter_kotlin

    files = [*android.rglob("*.kt"), *android.rglob("*.kts")]
    assert len(files) == 5
    assert [p for f in files for p in problems(tree_sitter_kotlin.language(), f)] == []


@pytest.mark.parametrize("scheme", ["onnx", "ort"])
def test_ios_is_swift_and_compiles_for_apple(
    real_int8: Path, headers: Path, tmp_path: Path, scheme: str
) -> None:
    import tree_sitter_swift

    deploy_model(real_int8, "ios", tmp_path / "app", ort_format=scheme == "ort")
    files = [*(tmp_path / "app").rglob("*.swift")]
    assert len(files) == 2
    assert [p for f in files for p in problems(tree_sitter_swift.language(), f)] == []
    framework = tmp_path / "frameworks" / "onnxruntime"
    framework.parent.mkdir()
    framework.symlink_to(headers)
    for name in ("model", "plugin", "sampler", "session", "text", "tokenizer"):
        run(
            [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-macos", "-std=gnu11", "-c",
             "-Wall", "-Wextra", "-Werror", f"-I{framework.parent}", f"Native/{name}.c",
             "-o", f"{name}.o"],
            tmp_path / "app",
        )  # fmt: skip
    project = yaml.safe_load((tmp_path / "app" / "project.yml").read_text("utf-8"))
    package, embedded = project["targets"]["Starter"]["dependencies"]
    runtime = project["packages"][package["package"]]
    assert runtime["url"].endswith("/onnxruntime-swift-package-manager")
    assert tuple(map(int, runtime["from"].split("."))) >= (1, 24, 1)
    framework = project["targets"][embedded["target"]]
    assert framework["type"] == "framework"
    opened = f"@rpath/{embedded['target']}.framework/{embedded['target']}"
    assert f'"{opened}"' in (tmp_path / "app" / "Native" / "app.h").read_text("utf-8")
    (sources,) = framework["sources"]
    (pattern,) = sources["includes"]
    run(
        [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-macos", "-std=c11", "-O3",
         "-fvisibility=hidden", "-shared", "-o", "edgetie_kernels",
         *sorted((tmp_path / "app" / sources["path"]).glob(pattern))],
        tmp_path / "app",
    )  # fmt: skip
    header = '#include "Sources/Bridging.h"\nint main(void) { return !model_problem; }\n'
    (tmp_path / "app" / "main.c").write_text(header, encoding="utf-8")
    run([sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-macos", "-c", "main.c"],
        tmp_path / "app")  # fmt: skip


def test_android_packages_the_runtime_once(android: Path) -> None:
    gradle = (android / "app" / "build.gradle.kts").read_text("utf-8")
    assert 'onnxruntime("com.microsoft.onnxruntime:onnxruntime-android:' in gradle
    assert "implementation(" not in gradle  # CMake imports the library, which is packaged


def test_readme_states_what_the_phones_provider_would_run(android: Path) -> None:
    text = (android / "README.md").read_text(encoding="utf-8")
    assert "NNAPI: use the CPU instead. It would run" in text
    assert "it lacks" in text
    assert "gradle wrapper" in text
    assert "{{" not in text
