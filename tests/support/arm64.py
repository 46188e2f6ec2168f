"""An ARM64 environment that this machine emulates: QEMU, Debian's Python, wheels for aarch64.

Everything comes from the package registries of this system, is unpacked below one directory and
needs no root rights. QEMU runs single programs (user mode) as a given core.
"""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

from debian import run, unpack
from provider_rows import register_provider

from edgetie.progress import Progress
from edgetie.providers.environments import REQUIREMENTS, Environment, environment_directory
from edgetie.providers.registry import Provider

_PYTHON = "3.13"
_WHEELS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")


CORES = {"arm64-a53": "cortex-a53", "arm64-a76": "cortex-a76", "arm64-n2": "neoverse-n2"}
"""Providers to QEMU's cores: plain NEON, with dot products, with int8 matrix products."""


def register_arm64() -> None:
    """Add the CPU provider on each emulated core to edgetie's providers."""
    for name, core in CORES.items():
        row = Provider(
            name,
            "CPUExecutionProvider",
            "onnxruntime for aarch64",
            f"ARM64, emulated {core}",
            "mobile-cpu",
            "emulated: not measured",
            environment=name,
            worker_name="cpu",
        )
        register_provider(row, partial(make_arm64, core))


def make_arm64(core: str, directory: Path, progress: Progress) -> Environment:
    """Make the environment of one core. All cores share QEMU, Python and packages.

    Raises:
        ProviderError: if this system is not Debian, or a package cannot be fetched.
    """
    shared = environment_directory("arm64")
    root, emulator = shared / "root", shared / "qemu-aarch64"
    if not (root / "packages" / "onnxruntime").is_dir():
        shutil.rmtree(shared, ignore_errors=True)
        shared.mkdir()
        _fetch(shared, progress)
    python = root / "usr" / "bin" / f"python{_PYTHON}"
    return Environment(
        (str(emulator), "-cpu", core, "-L", str(root), str(python)),
        {"PYTHONPATH": str(root / "packages")},
    )


def _fetch(directory: Path, progress: Progress) -> None:
    root = directory / "root"
    progress.stage("Fetching QEMU")
    unpack(["qemu-user"], directory / "tools")
    tools = directory / "tools" / "usr" / "bin"
    (tools / "qemu-aarch64").resolve().rename(directory / "qemu-aarch64")
    shutil.rmtree(directory / "tools")
    progress.stage("Fetching Python for ARM64")
    unpack([f"python{_PYTHON}", "libstdc++6"], root, architecture="arm64")
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")  # as in the package base-files
    progress.stage("Fetching wheels for ARM64")
    options = [part for name in _WHEELS for part in ("--platform", f"{name}_aarch64")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", *options]
    command += ["--python-version", _PYTHON, "--implementation", "cp"]
    run([*command, "--target", str(root / "packages"), "onnxruntime", *REQUIREMENTS])
