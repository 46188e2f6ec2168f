"""Directories of transformers: weights that do not fit, and files that are refused."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import image_models
import models
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from edgetie.errors import SourceError
from edgetie.sources import pretrained
from edgetie.sources.load import load_source

WIDTH = 64


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    models.transformers_model("Llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(directory: Path, **settings: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_weights_of_more_layers_are_refused(saved: Path) -> None:
    change(saved, num_hidden_layers=1)
    with pytest.raises(SourceError, match=r"more layers .*model\.layers\.1\..*config\.json"):
        load_source(str(saved))


def test_more_layers_than_any_model_has_are_refused_before_they_are_made(saved: Path) -> None:
    change(saved, num_hidden_layers=2**31 - 1)
    with pytest.raises(SourceError, match="has num_hidden_layers 2147483647, which no model has"):
        load_source(str(saved))


def test_sizes_of_a_layer_are_not_numbers_of_layers(saved: Path) -> None:
    change(saved, vocab_size_per_layer_input=262144)
    assert load_source(str(saved)).module.config.num_hidden_layers == 2


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_a_package_that_a_model_needs_is_named(tmp_path: Path) -> None:
    transformers.PerceptionLMConfig().save_pretrained(tmp_path)
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match="needs the package timm to be loaded; pip install timm"):
        load_source(str(tmp_path))


def test_damaged_settings_of_images_are_refused(tmp_path: Path) -> None:
    image_models.build(image_models.llava()).save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"image_processor": 5}')
    with pytest.raises(SourceError, match=r"processor_config\.json: image_processor is not an obj"):
        load_source(str(tmp_path))


def test_a_task_that_a_model_does_not_have_is_refused_with_those_it_has(saved: Path) -> None:
    with pytest.raises(SourceError, match=r"llama cannot be loaded for masked-lm, only for causal"):
        load_source(str(saved), task="masked-lm")


def test_weights_that_are_not_used_are_named(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.bias"
    save_file(weights | {name: torch.zeros(WIDTH)}, saved / "model.safetensors", {"format": "pt"})
    assert load_source(str(saved)).unused == [name]


def test_an_adapter_that_would_be_left_out_is_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    (saved / "adapter_config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"adapter_config\.json.* peft"):
        load_source(str(saved))


def test_code_and_pickles_need_a_permission(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "own.Model"}}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(SourceError, match=r"auto_map in config\.json") as refused:
        load_source(str(tmp_path), allow_pickle=True)
    assert refused.value.advice == {"trust_remote_code": True}
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="can run code when loaded") as refused:
        load_source(str(tmp_path))
    assert refused.value.advice == {"allow_pickle": True}
    assert "--" not in str(refused.value)


def test_a_bundle_is_not_exported_again(tmp_path: Path) -> None:
    for name in ("config.json", "edgetie.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(SourceError, match="is a bundle already"):
        load_source(str(tmp_path))
