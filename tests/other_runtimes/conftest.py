"""Other people's runtimes, installed once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from starters import run

from edgetie.downloads import cache_directory

OPTIMUM = ("optimum", "optimum-onnx", "transformers<5", "huggingface-hub<1", "tokenizers<0.23")


@pytest.fixture(scope="session")
def optimum() -> Path:
    """optimum needs transformers 4, which is put before the newer one on the path."""
    folder = cache_directory() / "optimum"
    if not (folder / "optimum").is_dir():
        scratch = folder.with_suffix(".part")
        shutil.rmtree(scratch, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        subprocess.run([*command, str(scratch), *OPTIMUM], check=True)
        scratch.rename(folder)
    return folder


@pytest.fixture(scope="session")
def node() -> Path:
    """The modules of transformers.js."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs Node.js and npm")
    folder = cache_directory() / "transformers.js"
    if not (folder / "node_modules" / "@huggingface" / "transformers").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}")
        command = ["npm", "install", "--no-audit", "--ignore-scripts", "@huggingface/transformers"]
        run([*command[:-1], f"{command[-1]}@^4.3.0"], folder)
    return folder / "node_modules"
