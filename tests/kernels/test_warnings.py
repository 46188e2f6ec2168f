"""The compiler has nothing to say about the kernels' source."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edgetie.kernels.build import PACKAGE, find_compiler

WARNINGS = (
    "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wno-enum-float-conversion",
    "-Wstrict-prototypes", "-Wvla",
)  # fmt: skip


def test_the_source_compiles_without_warnings() -> None:
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    sources = [*sorted((PACKAGE / "src").glob("*.c")), Path(__file__).with_name("driver.c")]
    done = subprocess.run(
        [*compiler, "-std=c11", "-D_GNU_SOURCE", "-fsyntax-only", *WARNINGS,
         f"-I{PACKAGE / 'src'}", *sources],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
