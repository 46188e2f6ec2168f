"""Separate environments: their commands, and how they are made, found and replaced."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from provider_rows import register_provider

from edgetie.errors import ProviderError
from edgetie.progress import Progress
from edgetie.providers.environments import (
    RECIPES,
    SIZES,
    Environment,
    environment_directory,
    find_environment,
    install_environment,
    pip_recipe,
)
from edgetie.providers.registry import PROVIDERS, Provider

RIG = Provider(
    "rig", "CPUExecutionProvider", "a package", "a rig", "cpu", environment="rig", worker_name="cpu"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield
    PROVIDERS.pop("rig", None)
    RECIPES.pop("rig", None)


def make(directory: Path, progress: Progress) -> Environment:
    (directory / "python").write_text("new", encoding="utf-8")
    return Environment((sys.executable,), {"RIG": "1"})


def test_command_and_variables() -> None:
    command, variables = Environment(("qemu", "python"), {"RIG": "1"}).command_for("edgetie.x")
    assert command[:3] == ["qemu", "python", "-c"]
    assert command[-1] == "edgetie.x"
    assert Path(command[-2]).name == "edgetie"
    assert variables["RIG"] == "1"
    assert "PATH" in variables


def test_registered_provider_is_installed_and_found() -> None:
    register_provider(RIG, make)
    with pytest.raises(ProviderError, match="separate environment only; install it"):
        find_environment(RIG)
    environment = install_environment("rig")
    assert find_environment(RIG) == environment
    assert find_environment(PROVIDERS["cpu"]) is None


def test_failure_restores_the_old_environment() -> None:
    register_provider(RIG, make)
    install_environment("rig")

    def fail(directory: Path, progress: Progress) -> Environment:
        (directory / "half").write_text("x", encoding="utf-8")
        raise ProviderError("a package: cannot be installed")

    register_provider(RIG, fail)
    with pytest.raises(ProviderError, match="cannot be installed"):
        install_environment("rig")
    directory = environment_directory("rig")
    assert sorted(path.name for path in directory.iterdir()) == ["environment.json", "python"]
    assert [path.name for path in directory.parent.iterdir()] == ["rig"]


@pytest.mark.parametrize("text", ["", "{}", '{"command": 1, "variables": {}}'])
def test_broken_environment(text: str) -> None:
    register_provider(RIG, make)
    environment_directory("rig").mkdir(parents=True)
    (environment_directory("rig") / "environment.json").write_text(text, encoding="utf-8")
    with pytest.raises(ProviderError, match="provider='rig': its environment is broken"):
        find_environment(RIG)


def test_provider_without_an_environment() -> None:
    with pytest.raises(ProviderError, match="provider='nnapi': has no environment to install"):
        install_environment("nnapi")


@pytest.mark.skipif(sys.platform != "linux", reason="the library is Linux's")
def test_packages_without_the_driver_of_their_hardware_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register_provider(replace(RIG, driver="no_such_driver"), make)
    monkeypatch.setitem(SIZES, "rig", "9 GB")
    with pytest.raises(ProviderError, match=r"a rig is not on this .*, which take 9 GB,") as error:
        install_environment("rig")
    assert error.value.advice == {"force": True}
    assert not environment_directory("rig").exists()
    assert install_environment("rig", force=True).variables == {"RIG": "1"}
    register_provider(replace(RIG, driver="c"), make)
    assert install_environment("rig") == find_environment(PROVIDERS["rig"])


@pytest.mark.slow
def test_package_that_does_not_exist(tmp_path: Path) -> None:
    class Silent:
        def stage(self, name: str) -> None:
            assert name == "Installing ./nowhere"

        def advance(self, done: int, total: int) -> None:
            pass

    with pytest.raises(ProviderError, match=r"\./nowhere: cannot be installed \("):
        pip_recipe("./nowhere")(tmp_path, Silent())
