"""Separate Python environments for providers, whose wheels all install one module."""

import ctypes.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgetie.downloads import cache_directory
from edgetie.errors import ProviderError
from edgetie.progress import Progress, Stages
from edgetie.providers.registry import Provider, explain_absence, find_provider

REQUIREMENTS = ("numpy", "onnx", "onnx-ir", "tokenizers", "jinja2", "pillow")
"""Packages that edgetie's runtime needs in addition to onnxruntime."""

_FILE = "environment.json"

_START = """
import runpy, sys, types
if sys.path[:1] == [""]:
    del sys.path[0]  # the current directory is not searched
sys.modules["edgetie"] = types.ModuleType("edgetie")
sys.modules["edgetie"].__path__ = [sys.argv[1]]
runpy.run_module(sys.argv[2], run_name="__main__")
"""


@dataclass(frozen=True)
class Environment:
    """A Python interpreter.

    Attributes:
        command: starts it.
        variables: environment variables to add to those of this process.
    """

    command: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)

    def command_for(self, module: str) -> tuple[list[str], dict[str, str]]:
        """Compose the command that runs a module of edgetie, and its environment variables."""
        folder = str(Path(__file__).resolve().parents[1])
        return [*self.command, "-c", _START, folder, module], {**os.environ, **self.variables}


Recipe = Callable[[Path, Progress], Environment]
"""Makes an environment in an empty directory."""


def pip_recipe(*packages: str) -> Recipe:
    """Return a recipe for a virtual environment with some packages."""

    def make(directory: Path, progress: Progress) -> Environment:
        progress.stage(f"Installing {packages[0]}")
        folder = "Scripts" if sys.platform == "win32" else "bin"
        python = directory / "python" / folder / "python"
        for command in (
            [sys.executable, "-m", "venv", str(directory / "python")],
            [str(python), "-m", "pip", "install", "--quiet", *packages, *REQUIREMENTS],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise ProviderError(f"{packages[0]}: cannot be installed ({last})")
        return Environment((str(python),))

    return make


RECIPES: dict[str, Recipe] = {
    "cuda": pip_recipe("onnxruntime-gpu[cuda,cudnn]"),
    "openvino": pip_recipe("onnxruntime-openvino>=1.24"),
    "qnn": pip_recipe("onnxruntime-qnn", "onnxruntime"),
}
"""Recipes by the name of the environment, see :attr:`Provider.environment`."""

SIZES = {"cuda": "2.7 GB"}
"""What large environments take on the disk."""


def environment_directory(name: str) -> Path:
    """Return the directory of an environment, which may not exist."""
    return cache_directory() / "environments" / name


def install_environment(
    provider: str, *, force: bool = False, progress: Progress | None = None
) -> Environment:
    """Make the environment of a provider below the cache directory, from the package index.

    If that fails, an earlier environment stays.

    Args:
        provider: its short name.
        force: install it even if this machine lacks the driver that it needs.
        progress: told about each step.

    Raises:
        ProviderError: if the provider has no environment or no driver here, or making it fails.
    """
    row = find_provider(provider)
    if not row.environment:
        raise row.error(f"has no environment to install; it comes with {row.package}")
    if row.driver and not force and not _has_library(row.driver):
        size = f", which take {SIZES[row.environment]}," if row.environment in SIZES else ""
        raise ProviderError(
            f"the driver of {row.machines} is not on this machine, and without it the packages"
            f"{size} do not start",
            parameter="provider",
            value=row.name,
            advice={"force": True},
        )
    target = environment_directory(row.environment)
    old = target.with_name(f"{target.name}.old")  # an environment works only where it was made
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    try:
        target.mkdir()
        environment = RECIPES[row.environment](target, progress or Stages())
        (target / _FILE).write_text(json.dumps(asdict(environment)), encoding="utf-8")
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return environment


def _has_library(name: str) -> bool:
    """Whether the system has a library, such as ``cuda`` for libcuda.so or nvcuda.dll."""
    return any(ctypes.util.find_library(each) for each in (name, f"nv{name}"))


def find_environment(row: Provider) -> Environment | None:
    """Find the environment that has a provider: ``None`` if this process has it.

    Raises:
        ProviderError: if no environment has it. The message says what to do.
    """
    reason = explain_absence(row)
    if reason is None:
        return None
    try:
        file = environment_directory(row.environment) / _FILE
        data = json.loads(file.read_text(encoding="utf-8"))
        return Environment(tuple(data["command"]), dict(data["variables"]))
    except OSError:
        raise row.error(reason) from None
    except (ValueError, KeyError, TypeError) as error:
        raise broken_environment(row, error) from error


def broken_environment(row: Provider, error: Exception) -> ProviderError:
    """Return the error for an environment that does not start."""
    return row.error(f"its environment is broken ({error}); edgetie providers installs it again")
