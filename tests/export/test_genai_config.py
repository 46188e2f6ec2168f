"""``genai_config.json``: which models get one, and what it holds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgetie.bundle.manifest import Signature
from edgetie.export.genai_config import write_genai_config
from edgetie.export.tasks.causal import CausalTask
from edgetie.export.tasks.causal_model import CausalCall
from edgetie.graph.tensors import CacheTensor

CONFIG = SimpleNamespace(
    hidden_size=64, num_attention_heads=4, pad_token_id=None, bos_token_id=None
)


def task(*sizes: tuple[int, ...], positions: int | None = 128) -> CausalTask:
    cache = tuple(
        CacheTensor(f"{layer}.{part}", size)
        for layer, size in enumerate(sizes)
        for part in ("key", "value")
    )
    return CausalTask(320, positions, CausalCall("transformers"), cache=cache)


def signature(ends: list[int], in_place: bool = True) -> Signature:
    return Signature([], [], cache_in_place=in_place, eos_token_ids=ends)


def write(path: Path, *, ends: list[int], positions: int | None = 128) -> Any:
    model = task((2, 0, 16), (2, 0, 16), positions=positions)
    assert write_genai_config(path, CONFIG, model, signature(ends))
    return json.loads((path / "genai_config.json").read_text())


def test_sizes_and_lengths(tmp_path: Path) -> None:
    data = write(tmp_path, ends=[2])
    decoder = data["model"]["decoder"]
    assert decoder["head_size"] == 16
    assert decoder["num_key_value_heads"] == 2
    assert decoder["num_hidden_layers"] == 2
    assert data["model"]["context_length"] == data["search"]["max_length"] == 128
    assert write(tmp_path, ends=[2], positions=None)["model"]["context_length"] == 2048


@pytest.mark.parametrize(("ends", "eos", "pad"), [([2], 2, 2), ([2, 3], [2, 3], 2), ([], None, 0)])
def test_special_tokens(tmp_path: Path, ends: list[int], eos: Any, pad: int) -> None:
    model = write(tmp_path, ends=ends)["model"]
    assert model.get("eos_token_id") == eos
    assert model["pad_token_id"] == model["bos_token_id"] == pad


@pytest.mark.parametrize(
    ("config", "sizes", "in_place"),
    [
        (CONFIG, [(2, 0, 16)], False),
        (None, [(2, 0, 16)], True),
        (SimpleNamespace(hidden_size=64), [(2, 0, 16)], True),
        (CONFIG, [(2, 0, 16), (4, 0, 16)], True),
    ],
)
def test_models_that_onnxruntime_genai_does_not_support(
    tmp_path: Path, config: Any, sizes: list[tuple[int, ...]], in_place: bool
) -> None:
    assert not write_genai_config(tmp_path, config, task(*sizes), signature([2], in_place))
    assert not list(tmp_path.iterdir())
