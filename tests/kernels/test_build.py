"""Building the library: compilers, warnings, and what is said where it cannot be built."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from edgetie.errors import ProviderError
from edgetie.kernels.build import build_library, find_compiler


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["system", "ziglang"])
def test_compilers_find_nothing_to_warn_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    if compiler == "ziglang":
        pytest.importorskip("ziglang")
        monkeypatch.setenv("CC", "no-such-compiler")
    elif find_compiler() is None:
        pytest.skip("this system has no compiler")
    monkeypatch.setenv("CFLAGS", "-Wall -Wextra -Werror")
    library = build_library(tmp_path / "built")
    assert list((tmp_path / "built").iterdir()) == [library]
    assert ctypes.CDLL(str(library)).CreateEpFactories


def test_what_a_compiler_reports_is_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFLAGS", "-no-such-option")
    with pytest.raises(ProviderError, match="no-such-option"):
        build_library(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_a_compiler_is_told_what_to_install(tmp_path: Path) -> None:
    code = (
        "import os, sys; sys.modules['ziglang'] = None; os.environ['CC'] = 'no-such-compiler'; "
        "import runpy; runpy.run_module('edgetie.kernels.build', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "no C compiler: cc, gcc, clang or the package ziglang\n"
