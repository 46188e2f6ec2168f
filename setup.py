"""Finds the packages and builds the library of the kernels; all else is in pyproject.toml.

The variable ``EDGETIE_PLATFORM`` builds for another platform of
``edgetie.kernels.build.ZIG_TARGETS``.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent))

from edgetie import kernels
from edgetie.errors import ProviderError
from edgetie.kernels import build

PLATFORM = os.environ.get("EDGETIE_PLATFORM", "")
ZIG = "ziglang>=0.13; sys_platform in 'linux darwin win32'"


class BuildLibrary(build_ext):
    """Builds the library. Without a compiler the installation goes on, and keeps the reason."""

    def run(self) -> None:
        folder = Path("" if self.inplace else self.build_lib, "edgetie", "kernels")
        for earlier in (
            *map(kernels.library_name, ("linux", "darwin", "win32")),
            kernels.REASON_FILE,
        ):
            (folder / earlier).unlink(missing_ok=True)
        try:
            build.build_library(folder, PLATFORM)
        except ProviderError as error:
            if PLATFORM:
                raise
            folder.mkdir(parents=True, exist_ok=True)
            (folder / kernels.REASON_FILE).write_text(f"{error}\n", encoding="utf-8")
            self.warn(f"edgetie's execution provider was not built: {error}")

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path("edgetie", "kernels", kernels.library_name(PLATFORM or sys.platform)))


class TaggedWheel(bdist_wheel):
    """A wheel for every Python; for one platform if the library is in it."""

    def get_tag(self) -> tuple[str, str, str]:
        name = kernels.library_name(PLATFORM or sys.platform)
        library = Path(self.get_finalized_command("build").build_lib, "edgetie", "kernels", name)
        return "py3", "none", (PLATFORM or super().get_tag()[2]) if library.is_file() else "any"


setup(
    packages=[*find_packages(include=["edgetie*"]), "edgetie_cli", "edgetie_cli.printing"],
    ext_modules=[
        Extension(
            "edgetie.kernels.edgetie_kernels",
            sources=sorted(map(str, Path("edgetie/kernels/src").glob("*.c"))),
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": TaggedWheel},
    setup_requires=[] if not PLATFORM and build.find_compiler() else [ZIG],
)
