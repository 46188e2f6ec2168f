"""Compile the library from ``src/``: with the system's compiler, else with ``ziglang``'s.

``python -m edgetie.kernels.build`` builds it where the package is. ``setup.py`` does it for
``pip install``, and for other platforms' wheels, see :data:`ZIG_TARGETS`.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import edgetie
from edgetie.errors import ProviderError
from edgetie.kernels import REASON_FILE, library_name

PACKAGE = Path(__file__).resolve().parent

FLAGS = ("-std=c11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden")

ZIG_TARGETS = {
    "manylinux_2_17_x86_64": "x86_64-linux-gnu.2.17",
    "manylinux_2_17_aarch64": "aarch64-linux-gnu.2.17",
    "macosx_11_0_x86_64": "x86_64-macos.11.0",
    "macosx_11_0_arm64": "aarch64-macos.11.0",
    "win_amd64": "x86_64-windows-gnu",
    "win_arm64": "aarch64-windows-gnu",
}
"""Platforms that the library is built for on any machine: tag of the wheel, and target of zig."""

_PROBE = "#include <math.h>\n#include <stdatomic.h>\nfloat root(float x) { return sqrtf(x); }\n"


def find_compiler() -> list[str] | None:
    """Find the system's compiler, ``$CC``, cc, gcc or clang: one that compiles and links C11."""
    variable = os.environ.get("CC")
    commands = [shlex.split(variable)] if variable else [["cc"], ["gcc"], ["clang"]]
    with TemporaryDirectory() as folder:
        probe = Path(folder, "probe.c")
        probe.write_text(_PROBE, encoding="utf-8")
        for command in commands:
            if shutil.which(command[0]) and not _compile(command, [probe], Path(folder, "probe")):
                return command
    return None


def build_library(folder: Path = PACKAGE, platform: str = "") -> Path:
    """Build the library.

    Args:
        folder: where to; a library that is there is replaced.
        platform: one of :data:`ZIG_TARGETS`; empty for this machine. ``$CFLAGS`` are added.

    Returns:
        The path of the library.

    Raises:
        ProviderError: if there is no compiler, or it fails.
    """
    zig = [sys.executable, "-m", "ziglang", "cc", "-s"]
    compiler = None if platform else find_compiler()
    if compiler is None:
        if importlib.util.find_spec("ziglang") is None:
            raise ProviderError("no C compiler: cc, gcc, clang or the package ziglang")
        compiler = (
            [*zig, "-target", ZIG_TARGETS[platform]] if platform else [*zig, "-mcpu=baseline"]
        )
    name = library_name(platform or sys.platform)
    with TemporaryDirectory() as scratch:  # linkers for Windows write more than the library
        built = Path(scratch, name)
        problem = _compile(compiler, sorted(PACKAGE.glob("src/*.c")), built)
        if problem:
            raise ProviderError(f"{shlex.join(compiler)}: {problem}")
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f"{name}.part"
        shutil.copy(built, new)
    (folder / REASON_FILE).unlink(missing_ok=True)
    return new.replace(folder / name)  # processes that have loaded the old one keep it


def _compile(command: list[str], sources: list[Path], library: Path) -> str:
    """Compile and link; return the first error, or an empty string."""
    version = f'-DEDGETIE_VERSION="{edgetie.__version__}"'
    flags = [*FLAGS, version, *shlex.split(os.environ.get("CFLAGS", ""))]
    done = subprocess.run(
        [*command, *flags, *map(str, sources), "-lm", "-o", library.name],
        cwd=library.parent,  # macOS's linkers write the path that they are given into the library
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if not done.returncode:
        return ""
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return next((line for line in lines if "error" in line), lines[-1])


if __name__ == "__main__":
    try:
        print(build_library())
    except ProviderError as error:
        sys.exit(str(error))
