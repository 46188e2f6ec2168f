"""A Python for ARM64 that this machine emulates: QEMU, Debian's Python, wheels for aarch64.

Everything comes from the package registries that this system is set up for, is unpacked below one
directory and needs no rights: Debian's packages through ``apt-get`` with a state of its own, wheels
through pip. QEMU runs single programs (user mode) and can be told which core to be.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edgetie.errors import ProviderError
from edgetie.harness.environments import FLAGS, NEEDED, Environment
from edgetie.report.progress import Progress

_SUITE, _PYTHON = "trixie", "3.13"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_WHEELS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")


def make_arm64(directory: Path, progress: Progress) -> Environment:
    """Make the environment in an empty directory.

    Raises:
        ProviderError: if this is no Debian, or a package cannot be had.
    """
    if sys.platform != "linux" or shutil.which("apt-get") is None:
        raise ProviderError("--install arm64: is made of Debian's packages, and needs its apt-get")
    root = directory / "root"
    progress.stage("Fetching QEMU")
    _unpack(["qemu-user"], "", directory / "tools")
    emulator = directory / "qemu-aarch64"
    (directory / "tools" / "usr" / "bin" / "qemu-aarch64").resolve().rename(emulator)
    shutil.rmtree(directory / "tools")
    progress.stage("Fetching Python for ARM64")
    _unpack([f"python{_PYTHON}", "libstdc++6"], "arm64", root)
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")  # what the package base-files would bring
    progress.stage("Fetching wheels for ARM64")
    options = [part for name in _WHEELS for part in ("--platform", f"{name}_aarch64")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", *options]
    command += ["--python-version", _PYTHON, "--implementation", "cp"]
    _run([*command, "--target", str(root / "packages"), "onnxruntime", *NEEDED])
    python = root / "usr" / "bin" / f"python{_PYTHON}"
    return Environment(
        (str(emulator), FLAGS, "-L", str(root), str(python)),
        {"PYTHONPATH": str(root / "packages")},
    )


def _unpack(packages: Sequence[str], architecture: str, target: Path) -> None:
    """Unpack Debian packages; of another architecture than this machine's with all they need."""
    state = target.with_name("apt")
    for folder in ("lists/partial", "archives/partial"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    (state / "sources.list").write_text(
        f"deb [signed-by={_KEYRING}] {_mirror()} {_SUITE} main\n", encoding="utf-8"
    )
    settings = {
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Debug::NoLocking": 1,
    }
    if architecture:
        settings |= {"APT::Architecture": architecture, "APT::Architectures": architecture}
    options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
    apt = ["apt-get", *options]
    _run([*apt, "update"])
    if architecture:
        _run([*apt, "install", "--yes", "--download-only", "--no-install-recommends", *packages])
    else:
        _run([*apt, "download", *packages], state / "archives")
    for archive in sorted((state / "archives").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(archive), str(target)])
    shutil.rmtree(state)


def _mirror() -> str:
    """The mirror of Debian that this system uses."""
    listed = _run(["apt-get", "indextargets", "--format", "$(REPO_URI)"])
    for uri in listed.splitlines():
        if uri.rstrip("/").endswith("/debian"):
            return uri
    raise ProviderError("--install arm64: apt knows no mirror of Debian; add one to its sources")


def _run(command: list[str], folder: Path | None = None) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ProviderError(f"--install arm64: {command[0]} failed ({last})")
    return done.stdout
