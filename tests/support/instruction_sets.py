"""The instruction sets that the kernels are compiled for."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

IS_ARM = platform.machine().lower() in ("arm64", "aarch64")
SETS = ("neon", "dotprod", "i8mm") if IS_ARM else ("sse2", "avx2", "avxvnni", "avx512")
"""Instruction sets that the kernels are compiled for, of which this machine may lack some."""


def select_set(name: str) -> dict[str, str]:
    """Return an environment in which the kernels use one of ``SETS``; skip where it is missing."""
    environment = os.environ | {"EDGETIE_INSTRUCTION_SET": name}
    code = "from edgetie.kernels import instruction_set; print(instruction_set())"
    used = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    if used.strip() != name:
        pytest.skip(f"this processor has no {name}")
    return environment
