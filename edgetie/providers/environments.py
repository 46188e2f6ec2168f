"""Environments of their own, for providers whose packages exclude each other or this machine.

Each wheel of ONNX Runtime (plain, OpenVINO's, CUDA's) installs the same module, so a process has
one of them. A provider that this process lacks runs in the interpreter of another environment,
below the cache directory, which :func:`install` makes once from the package index. edgetie's own
code is read from where it lies here; it needs numpy, onnx, tokenizers and an onnxruntime there.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import edgetie.errors
from edgetie.downloads import cache_directory
from edgetie.errors import BundleError, EdgetieError, ProviderError
from edgetie.progress import Progress, Stages
from edgetie.providers.registry import PROVIDERS, Provider, find, missing

FLAGS = "{flags}"
"""Stands in a command where a provider's flags go."""

NEEDED = ("numpy", "onnx", "onnx-ir", "tokenizers", "jinja2")
"""What edgetie's runtime needs besides onnxruntime."""

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
    """How a Python is started.

    Attributes:
        command: of its interpreter; ``{flags}`` stands where a provider's flags go.
        variables: of the environment, besides those of this process.
    """

    command: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)

    def run(self, module: str, flags: tuple[str, ...] = ()) -> tuple[list[str], dict[str, str]]:
        """The command that runs a module of edgetie, and its environment variables."""
        command: list[str] = []
        for part in self.command:
            command += flags if part == FLAGS else (part,)
        folder = str(Path(edgetie.__file__).resolve().parent)
        return [*command, "-c", _START, folder, module], {**os.environ, **self.variables}


@dataclass(frozen=True)
class Recipe:
    """How an environment is made.

    Attributes:
        words: what it is.
        make: makes it in an empty directory.
    """

    words: str
    make: Callable[[Path, Progress], Environment]


def wheels(*packages: str) -> Callable[[Path, Progress], Environment]:
    """A recipe: a virtual environment with these packages."""

    def make(directory: Path, progress: Progress) -> Environment:
        progress.stage(f"Installing {packages[0]}")
        folder = "Scripts" if sys.platform == "win32" else "bin"
        python = directory / "python" / folder / "python"
        for command in (
            [sys.executable, "-m", "venv", str(directory / "python")],
            [str(python), "-m", "pip", "install", "--quiet", *packages, *NEEDED],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise ProviderError(f"{packages[0]}: cannot be installed ({last})")
        return Environment((str(python),))

    return make


def _arm64(directory: Path, progress: Progress) -> Environment:
    from edgetie.providers.arm64 import make_arm64

    return make_arm64(directory, progress)


RECIPES: dict[str, Recipe] = {
    "cuda": Recipe(
        "onnxruntime with CUDA and its libraries", wheels("onnxruntime-gpu[cuda,cudnn]")
    ),
    "openvino": Recipe("onnxruntime with OpenVINO", wheels("onnxruntime-openvino>=1.24")),
    "qnn": Recipe("onnxruntime and Qualcomm's QNN", wheels("onnxruntime-qnn", "onnxruntime")),
    "arm64": Recipe("ARM64, emulated by QEMU", _arm64),
}
"""By the names that :data:`edgetie.runtime.PROVIDERS` use."""


def directory(name: str) -> Path:
    """Where the environment called ``name`` is, or would be."""
    return cache_directory() / "environments" / name


def install(provider: str, progress: Progress | None = None) -> Environment:
    """Make the environment of a provider; one that is there already is made anew, and kept where
    that fails.

    Raises:
        ProviderError: if the provider has none, or it cannot be made.
    """
    row = find(provider)
    if not row.environment:
        raise ProviderError(
            f"--install {row.name}: has no environment that can be made; it comes with "
            f"{row.package}"
        )
    target = directory(row.environment)
    old = target.with_name(f"{target.name}.old")  # an environment cannot be moved in
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    try:
        target.mkdir()
        made = RECIPES[row.environment].make(target, progress or Stages())
        (target / _FILE).write_text(json.dumps(asdict(made)), encoding="utf-8")
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return made


def environment_of(row: Provider) -> Environment | None:
    """Where ``row`` can be had: ``None`` is this process's own interpreter.

    Raises:
        ProviderError: if it can be had nowhere; the message says what to do.
    """
    why = missing(row)
    if why is None:
        return None
    try:
        found = json.loads((directory(row.environment) / _FILE).read_text(encoding="utf-8"))
    except OSError:
        raise ProviderError(f"--provider {row.name}: {why}") from None
    except ValueError as error:
        raise _broken(row, error) from error
    try:
        return Environment(tuple(found["command"]), dict(found["variables"]))
    except (KeyError, TypeError) as error:
        raise _broken(row, error) from error


def start(
    provider: str, module: str, *, interactive: bool = False
) -> tuple[subprocess.Popen[str], str]:
    """A process that runs a module of edgetie where a provider can be had.

    Its stdin and stdout are pipes, its stderr is one unless it is ``interactive``.

    Returns:
        It, and what the provider is called there.

    Raises:
        ProviderError: if it can be had nowhere.
    """
    row = find(provider)
    environment = environment_of(row)
    if environment is None:
        command, variables = here(module), dict(os.environ)
    else:
        command, variables = environment.run(module, row.flags)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if interactive else subprocess.PIPE,
            text=True,
            env=variables,
        )
    except OSError as error:
        raise _broken(row, error) from error
    return process, row.inside or row.name


def here(module: str) -> list[str]:
    """The command that runs a module in this interpreter, away from what lies where the user is."""
    return [sys.executable, "-P", "-m", module]


def _broken(row: Provider, error: Exception) -> ProviderError:
    return ProviderError(
        f"--provider {row.name}: its environment is broken ({error}); make it anew: "
        f"edgetie providers --install {row.name}"
    )


def ask(provider: str, module: str, request: dict[str, Any], what: str) -> Any:
    """Start a module, give it a request as JSON and read its answer.

    Args:
        provider: where it runs; the request's ``provider`` becomes what that is called there.
        module: reads JSON on stdin, writes JSON on stdout, or ``{"error": {"type", "message"}}``.
        request: for it.
        what: what was asked about, for errors.

    Raises:
        EdgetieError: what the process reported.
        BundleError: if it ended without reporting anything.
    """
    process, name = start(provider, module)
    try:
        out, err = process.communicate(json.dumps({**request, "provider": name}))
    except BaseException:  # interrupted: a worker left alone would go on
        process.kill()
        process.wait()
        raise
    try:
        answer = json.loads(out)
    except ValueError:
        lines, code = err.strip().splitlines(), process.returncode
        how = f"signal {-code}" if code < 0 else (lines or ["no output"])[-1]
        hint = " (out of memory?)" if code == -9 else ""
        raise BundleError(f"{what}: the measuring process ended with {how}{hint}") from None
    if isinstance(answer, dict) and "error" in answer:
        raise_error(answer["error"])
    return answer


def raise_error(error: Mapping[str, str]) -> None:
    """Raise in this process what another one reported."""
    raise getattr(edgetie.errors, error["type"], BundleError)(error["message"])


@dataclass(frozen=True)
class Availability:
    """Whether a provider can be had.

    Attributes:
        row: the provider.
        where: it starts: ``here``, ``in its environment``, or empty: nowhere.
        problem: why it cannot; empty if it can.
    """

    row: Provider
    where: str
    problem: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def availability() -> list[Availability]:
    """Every provider: whether it starts, where, and why not. Those at hand are tried, of those that
    are one environment with other flags the first.
    """
    first = {row.environment or row.name: row for row in reversed(PROVIDERS.values())}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tried = dict(zip(first, pool.map(_try, first.values()), strict=True))
    return [replace(tried[row.environment or row.name], row=row) for row in PROVIDERS.values()]


@cache
def _product() -> str:
    """A model of one product, as base64."""
    import numpy as np
    import onnx

    shape, float32 = [1, 16], onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "probe",
        [onnx.helper.make_tensor_value_info("x", float32, shape)],
        [onnx.helper.make_tensor_value_info("y", float32, shape)],
        [onnx.numpy_helper.from_array(np.eye(16, dtype=np.float32), "weight")],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=opset)
    return base64.b64encode(model.SerializeToString()).decode()


def _try(row: Provider) -> Availability:
    try:
        environment = environment_of(row)
        ask(row.name, "edgetie.runtime.start_probe", {"model": _product()}, row.name)
    except EdgetieError as error:
        return Availability(row, "", str(error).removeprefix(f"--provider {row.name}: "))
    return Availability(row, "here" if environment is None else "in its environment", "")
