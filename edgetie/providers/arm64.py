"""A Python for ARM64 that this machine emulates: QEMU, Debian's Python, wheels for aarch64.

Everything comes from the package registries that this system is set up for, is unpacked below one
directory and needs no rights. QEMU runs single programs (user mode), as the core it is told to be.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from edgetie.progress import Progress
from edgetie.providers.debian import run, unpack
from edgetie.providers.environments import FLAGS, NEEDED, Environment

_PYTHON = "3.13"
_WHEELS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")


def make_arm64(directory: Path, progress: Progress) -> Environment:
    """Make the environment in an empty directory.

    Raises:
        ProviderError: if this is no Debian, or a package cannot be had.
    """
    root = directory / "root"
    progress.stage("Fetching QEMU")
    unpack(["qemu-user"], directory / "tools")
    emulator = directory / "qemu-aarch64"
    (directory / "tools" / "usr" / "bin" / "qemu-aarch64").resolve().rename(emulator)
    shutil.rmtree(directory / "tools")
    progress.stage("Fetching Python for ARM64")
    unpack([f"python{_PYTHON}", "libstdc++6"], root, architecture="arm64")
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")  # what the package base-files would bring
    progress.stage("Fetching wheels for ARM64")
    options = [part for name in _WHEELS for part in ("--platform", f"{name}_aarch64")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", *options]
    command += ["--python-version", _PYTHON, "--implementation", "cp"]
    run([*command, "--target", str(root / "packages"), "onnxruntime", *NEEDED])
    python = root / "usr" / "bin" / f"python{_PYTHON}"
    return Environment(
        (str(emulator), FLAGS, "-L", str(root), str(python)),
        {"PYTHONPATH": str(root / "packages")},
    )
