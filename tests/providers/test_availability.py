"""Every provider is listed, and those that are installed are tried."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from command_line import edgetie, refused
from runtime_models import write_chat_bundle

from edgetie.providers.availability import list_availability
from edgetie.providers.environments import environment_directory
from edgetie.providers.registry import PROVIDERS


@pytest.mark.slow
def test_every_provider_is_listed() -> None:
    providers = {each.row.name: each for each in list_availability()}
    assert providers.keys() == PROVIDERS.keys()
    assert providers["cpu"].where == "here"
    assert not providers["wasm"].where
    assert "edgetie deploy" in providers["wasm"].problem
    for each in providers.values():
        assert bool(each.where) != bool(each.problem)
        assert json.loads(json.dumps(asdict(each)))["row"]["name"] == each.row.name


def test_absent_providers_are_refused(tmp_path: Path) -> None:
    bundle = write_chat_bundle(tmp_path / "bundle")
    for name in ("coreml", "wasm", "gpu"):
        refused(edgetie("bench", bundle, "--provider", name, cwd=tmp_path), f"--provider {name}")


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"command": ["/nowhere/python"], "variables": {}}'],
    ids=["empty", "keys", "gone"],
)
def test_a_broken_environment_does_not_affect_other_providers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = environment_directory("openvino")
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(text, "utf-8")
    providers = {each.row.name: each for each in list_availability()}
    assert providers["openvino"].problem.startswith("its environment is broken (")
    assert providers["openvino"].problem.endswith("edgetie providers installs it again")
    assert providers["cpu"].where == "here"
