"""Python functions that build a module."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import models
import pytest
import torch
import transformers

from edgetie.errors import SourceError
from edgetie.sources.load import load_source


def test_a_module_in_evaluation_mode_in_fp32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(models, "half", lambda: models.HandWritten().half(), raising=False)
    source = load_source("models:half")
    assert (source.kind, source.name, source.task) == ("factory", "models:half", "causal-lm")
    assert not source.module.training
    assert {parameter.dtype for parameter in source.module.parameters()} == {torch.float32}
    source.save_extras(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_configuration_is_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = models.HandWritten()
    module.config = transformers.LlamaConfig()
    monkeypatch.setattr(models, "configured", lambda: module, raising=False)
    load_source("models:configured").save_extras(tmp_path)
    assert (tmp_path / "config.json").is_file()


def test_a_compiled_module_is_unwrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    module = models.HandWritten()
    monkeypatch.setattr(
        models, "compiled", lambda: SimpleNamespace(_orig_mod=module), raising=False
    )
    assert load_source("models:compiled").module is module


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: 7, "returned int, not a torch.nn.Module"),
        (torch.nn.ReLU, "returned a module without parameters"),
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda needed: needed, "must be importable from here and take no arguments"),
    ],
)
def test_what_is_refused(monkeypatch: pytest.MonkeyPatch, function: Any, message: str) -> None:
    monkeypatch.setattr(models, "build", function, raising=False)
    with pytest.raises(SourceError, match=message):
        load_source("models:build")
    with pytest.raises(SourceError, match="ModuleNotFoundError"):
        load_source("no_such_module:build")
