"""The library as ONNX Runtime and other applications take it, and why it may be absent."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgetie
from edgetie import kernels
from edgetie.kernels import REASON_FILE, library_name


def run(code: str, folder: Path) -> str:
    """What a fresh interpreter prints that imports edgetie from a folder."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with edgetie in it, without the library."""
    source = Path(edgetie.__file__).parent
    shutil.copytree(
        source, tmp_path / "edgetie",
        ignore=shutil.ignore_patterns("__pycache__", "*edgetie_kernels*", REASON_FILE),
    )  # fmt: skip
    return tmp_path


def test_onnxruntime_registers_it_by_the_convention_for_plugins() -> None:
    code = (
        "import onnxruntime, edgetie.kernels as kernels;"
        "(name,) = kernels.get_ep_names(); path = kernels.get_library_path();"
        "onnxruntime.register_execution_provider_library(name, path);"
        "print(*{each.ep_name for each in onnxruntime.get_ep_devices()})"
    )
    assert kernels.explain_absence() is None
    assert "EdgetieExecutionProvider" in run(code, Path(edgetie.__file__).parents[1]).split()


def test_it_names_the_instruction_set() -> None:
    assert kernels.instruction_set()


def test_an_instruction_set_that_is_missing_is_said() -> None:
    code = (
        "import onnxruntime, edgetie.kernels as kernels;"
        "(name,) = kernels.get_ep_names(); path = kernels.get_library_path();"
        "onnxruntime.register_execution_provider_library(name, path)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"EDGETIE_INSTRUCTION_SET": "avx9"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "EDGETIE_INSTRUCTION_SET=avx9: this processor has no such instruction set" in done.stderr


def test_nothing_is_loaded_before_it_is_needed(installed: Path) -> None:
    code = "import sys, edgetie.kernels; print({'onnxruntime', 'ctypes'} & set(sys.modules))"
    assert run(code, installed) == "set()"


def test_without_a_library_the_reason_is_given(installed: Path) -> None:
    code = "import edgetie.kernels; print(edgetie.kernels.explain_absence())"
    assert run(code, installed) == (
        "its library was not built; python -m edgetie.kernels.build builds it"
    )
    (installed / "edgetie" / "kernels" / REASON_FILE).write_text("no C compiler\n")
    assert run(code, installed) == (
        "its library was not built (no C compiler); python -m edgetie.kernels.build builds it"
    )


def test_a_library_that_does_not_load_is_reported(installed: Path) -> None:
    (installed / "edgetie" / "kernels" / library_name()).write_bytes(b"of another machine")
    shown = run("import edgetie.kernels; print(edgetie.kernels.explain_absence())", installed)
    assert shown.startswith("its library does not load (")
    assert shown.endswith("python -m edgetie.kernels.build builds it again")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' loaders refuse it")
def test_a_library_that_is_cut_short_does_not_end_the_process(installed: Path) -> None:
    content = Path(kernels.get_library_path()).read_bytes()
    (installed / "edgetie" / "kernels" / library_name()).write_bytes(content[: len(content) // 2])
    shown = run("import edgetie.kernels; print(edgetie.kernels.explain_absence())", installed)
    assert shown.startswith("its library does not load (the file is cut short)")


def test_an_old_runtime_is_named(installed: Path) -> None:
    shutil.copy(kernels.get_library_path(), installed / "edgetie" / "kernels")
    (installed / "onnxruntime").mkdir()
    (installed / "onnxruntime" / "__init__.py").write_text("__version__ = '1.23.2'\n")
    shown = run("import edgetie.kernels; print(edgetie.kernels.explain_absence())", installed)
    assert shown == "needs onnxruntime 1.24 or newer, and 1.23.2 is installed"
