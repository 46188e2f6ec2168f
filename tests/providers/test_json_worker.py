"""Worker processes answer requests in JSON, and their errors are raised again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from provider_rows import register_provider

from edgetie.errors import BundleError, ProviderError
from edgetie.providers.environments import Environment, environment_directory
from edgetie.providers.json_worker import ask_worker, worker_command
from edgetie.providers.registry import PROVIDERS, Provider

WORKER = """
import os, sys
from edgetie.errors import ProviderError
from edgetie.providers.json_worker import reply

def answer(request):
    print("printed by a library")
    if request["kind"] == "error":
        raise ProviderError("absent", parameter="provider", value=request["provider"])
    if request["kind"] == "crash":
        os._exit(3)
    return request

reply(answer)
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that runs in this interpreter."""
    (tmp_path / "small_worker.py").write_text(WORKER, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "small_worker"


def test_request_and_answer(worker: str) -> None:
    assert ask_worker("cpu", worker, {"kind": "echo"}, "it") == {"kind": "echo", "provider": "cpu"}


def test_error_of_the_worker_is_raised_here(worker: str) -> None:
    with pytest.raises(ProviderError, match="provider='cpu': absent") as caught:
        ask_worker("cpu", worker, {"kind": "error"}, "it")
    assert caught.value.parameter == "provider"


def test_worker_that_ends_without_an_answer(worker: str) -> None:
    with pytest.raises(BundleError, match=r"^model: the measuring process ended with"):
        ask_worker("cpu", worker, {"kind": "crash"}, "model")


def test_worker_runs_in_the_environment_of_a_registered_provider(
    worker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    row = Provider(
        "rig", "CPUExecutionProvider", "onnxruntime", "a rig", "cpu",
        environment="rig", worker_name="cpu",
    )  # fmt: skip
    register_provider(row, lambda directory, progress: Environment((sys.executable,)))
    try:
        with pytest.raises(ProviderError, match="provider='rig': runs in a separate environment"):
            ask_worker("rig", worker, {"kind": "echo"}, "it")
        folder = environment_directory("rig")
        folder.mkdir(parents=True)
        environment = {"command": [sys.executable], "variables": {}}
        (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
        answer = ask_worker("rig", worker, {"kind": "echo"}, "it")
    finally:
        del PROVIDERS["rig"]
    assert answer == {"kind": "echo", "provider": "cpu"}


def test_command_does_not_search_the_current_directory() -> None:
    assert worker_command("edgetie.x") == [sys.executable, "-P", "-m", "edgetie.x"]
