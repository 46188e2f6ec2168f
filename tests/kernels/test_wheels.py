"""``make wheels``: what is in the wheels of all platforms."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgetie.kernels import library_name
from edgetie.kernels.build import ZIG_TARGETS

lief = pytest.importorskip("lief")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ENTRY_POINTS = {"CreateEpFactories", "ReleaseEpFactory", "edgetie_instruction_set"}
MACHINES = {
    "manylinux_2_17_x86_64": ("ELF", "X86_64"),
    "manylinux_2_17_aarch64": ("ELF", "AARCH64"),
    "macosx_11_0_x86_64": ("MACHO", "X86_64"),
    "macosx_11_0_arm64": ("MACHO", "ARM64"),
    "win_amd64": ("PE", "AMD64"),
    "win_arm64": ("PE", "ARM64"),
}
SYSTEM_LIBRARIES = {
    "ELF": ("libc.so.6", "libm.so.6", "ld-linux"),
    "MACHO": ("/usr/lib/libSystem.B.dylib",),
    "PE": ("KERNEL32.dll", "api-ms-win-crt-"),
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheels of a clean checkout."""
    checkout = tmp_path_factory.mktemp("wheels") / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)
    # the environment of this interpreter takes the place of the checkout's own
    command = ["make", "--old-file=.venv/.tested", f"BIN={Path(sys.executable).parent}", "wheels"]
    subprocess.run(command, cwd=checkout, check=True)
    return checkout / "dist"


def test_there_is_one_for_each_platform(wheels: Path) -> None:
    assert MACHINES.keys() == ZIG_TARGETS.keys()
    tags = {wheel.name.split("-", 2)[2] for wheel in wheels.iterdir()}
    assert tags == {f"py3-none-{platform}.whl" for platform in MACHINES}


@pytest.mark.parametrize("platform", MACHINES)
def test_the_library_is_for_the_machine_and_needs_its_system_only(
    wheels: Path, platform: str
) -> None:
    (wheel,) = wheels.glob(f"*{platform}.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if "edgetie_kernels" in name]
        assert names == [f"edgetie/kernels/{library_name(platform)}"]
        assert "edgetie/kernels/src/provider.c" in archive.namelist()
        assert not any(name.endswith("not_built.txt") for name in archive.namelist())
        library = lief.parse(list(archive.read(names[0])))
    header = library.header
    machine = {"ELF": "machine_type", "MACHO": "cpu_type", "PE": "machine"}
    file_format, name = MACHINES[platform]
    assert library.format.name == file_format
    assert getattr(header, machine[file_format]).name == name
    exported = {function.name.removeprefix("_") for function in library.exported_functions}
    assert exported >= ENTRY_POINTS
    assert [each for each in exported - ENTRY_POINTS if "kernel" in each] == []
    needed = {str(getattr(each, "name", each)) for each in library.libraries}
    assert needed - {library_name(platform)}  # a library of macOS lists itself
    allowed = SYSTEM_LIBRARIES[file_format]
    assert [
        each for each in needed - {library_name(platform)} if not each.startswith(allowed)
    ] == []


@pytest.mark.parametrize("platform", [each for each in MACHINES if each.startswith("manylinux")])
def test_old_systems_have_all_that_it_calls(wheels: Path, platform: str) -> None:
    (wheel,) = wheels.glob(f"*{platform}.whl")
    with zipfile.ZipFile(wheel) as archive:
        library = lief.ELF.parse(list(archive.read(f"edgetie/kernels/{library_name(platform)}")))
    called = [each for each in library.dynamic_symbols if each.imported]
    versions = {each.name: each.symbol_version.symbol_version_auxiliary for each in called}
    assert [name for name, version in versions.items() if version is None] == []
    numbers = [version.name.removeprefix("GLIBC_").split(".") for version in versions.values()]
    assert max([int(part) for part in number] for number in numbers) <= [2, 17]
