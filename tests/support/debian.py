"""Debian packages, also of another architecture, unpacked without root rights."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgetie.errors import ProviderError

SUITE = "trixie"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def available() -> bool:
    """Return whether this system has Debian's tools."""
    return shutil.which("apt-get") is not None and shutil.which("dpkg-deb") is not None


def unpack(packages: Sequence[str], target: Path, *, architecture: str = "") -> None:
    """Unpack packages of :data:`SUITE`, from the mirror that this system is set up for.

    Args:
        packages: their names.
        target: where to.
        architecture: of another machine than this: packages come with all they need.

    Raises:
        ProviderError: if this is no Debian, or a package cannot be had.
    """
    if not available():
        raise ProviderError(f"{packages[0]}: is a package of Debian, whose apt-get this lacks")
    state = target.with_name("apt")
    for folder in ("lists/partial", "archives/partial"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    (state / "sources.list").write_text(
        f"deb [signed-by={_KEYRING}] {_mirror()} {SUITE} main\n", encoding="utf-8"
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
    run([*apt, "update"])
    if architecture:
        run([*apt, "install", "--yes", "--download-only", "--no-install-recommends", *packages])
    else:
        run([*apt, "download", *packages], state / "archives")
    for archive in sorted((state / "archives").glob("*.deb")):
        run(["dpkg-deb", "-x", str(archive), str(target)])
    shutil.rmtree(state)


def _mirror() -> str:
    """The mirror of Debian that this system uses."""
    listed = run(["apt-get", "indextargets", "--format", "$(REPO_URI)"])
    for uri in listed.splitlines():
        if uri.rstrip("/").endswith("/debian"):
            return uri
    raise ProviderError("apt-get: knows no mirror of Debian; add one to its sources")


def run(command: list[str], folder: Path | None = None) -> str:
    """The output of a command that must succeed.

    Raises:
        ProviderError: if it fails; with its last line.
    """
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ProviderError(f"{command[0]}: failed ({last})")
    return done.stdout
