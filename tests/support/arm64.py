"""An ARM64 environment that this machine emulates: QEMU, Debian's Python, wheels for aarch64.

Everything comes from the package registries of this system, is unpacked below one directory and
needs no root rights. QEMU runs single programs (user mode) as a given core.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import debian
import pytest
from debian import run, unpack
from own_provider import package_with_library
from provider_rows import register_provider

from edgetie.kernels.build import build_library
from edgetie.progress import Progress
from edgetie.providers.environments import (
    REQUIREMENTS,
    Environment,
    environment_directory,
    find_environment,
    install_environment,
)
from edgetie.providers.registry import Provider, find_provider

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


def install_cores() -> None:
    """Make the environments of all cores, once."""
    if not debian.available():
        pytest.skip("the environment is made of Debian's packages")
    register_arm64()
    for name in CORES:
        if not (environment_directory(name) / "environment.json").is_file():
            install_environment(name)


def package_for_arm64(folder: Path) -> None:
    """Copy the package with a library for ARM64, without the public names and what they import."""
    package_with_library(folder, None)
    (folder / "edgetie" / "__init__.py").write_text("")
    build_library(folder / "edgetie" / "kernels", "manylinux_2_17_aarch64")


def run_script(core: str, package: Path, instruction_set: str, *command: object) -> str:
    """Run a script on a core of :data:`CORES` with the package of a folder; returns its output."""
    environment = find_environment(find_provider(core))
    assert environment is not None
    path = os.pathsep.join([str(package), environment.variables["PYTHONPATH"]])
    done = subprocess.run(
        [*environment.command, *map(str, command)],
        env=os.environ | {"PYTHONPATH": path, "EDGETIE_INSTRUCTION_SET": instruction_set},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


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
