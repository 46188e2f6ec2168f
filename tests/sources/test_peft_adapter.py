"""Adapters in peft's format: what they add, and what is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_models import AdaptedBundle, change_settings
from models import transformers_model
from peft import PeftModel
from safetensors.torch import load_file, save_file

from edgetie.errors import SourceError
from edgetie.sources.peft_adapter import check_peft_adapter, read_peft_adapter

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def folder(adapted_bundle: AdaptedBundle, tmp_path: Path) -> Path:
    """A copy of an adapter."""
    return Path(shutil.copytree(adapted_bundle.folders["small"], tmp_path / "small"))


@pytest.mark.parametrize("name", ["small", "large"])
def test_updates_are_those_of_peft(adapted_bundle: AdaptedBundle, name: str) -> None:
    adapter = read_peft_adapter(adapted_bundle.folders[name])
    model = PeftModel.from_pretrained(transformers_model("Llama"), str(adapter.directory))
    layers = {
        path.removeprefix("base_model.model."): layer
        for path, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    assert adapter.updates.keys() == layers.keys()
    for path, update in adapter.updates.items():
        expected = layers[path].get_delta_weight("default").detach().numpy()
        np.testing.assert_allclose((update.down @ update.up).T, expected, rtol=0, atol=1e-6)
    assert adapter.rank == {"small": 2, "large": 8}[name]


def test_bfloat16_is_read(folder: Path) -> None:
    before = read_peft_adapter(folder).updates
    tensors = {n: t.to(torch.bfloat16) for n, t in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)
    for name, update in read_peft_adapter(folder).updates.items():
        np.testing.assert_allclose(update.down, before[name].down, rtol=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "scales whole weights (DoRA), which cannot be added at run time; mer"),
        ({"bias": "all"}, "changes biases"),
        ({"modules_to_save": ["lm_head"]}, "replaces whole modules (a tied table becomes two)"),
        ({"trainable_token_indices": [5]}, "changes rows of the embedding table"),
        ({"init_lora_weights": "pissa"}, "changes the base's weights (init_lora_weights pissa)"),
        ({"peft_type": "IA3"}, "is of type IA3"),
        ({"r": 0}, "not the settings of an adapter"),
    ],
)
def test_more_than_low_rank_updates_is_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    change_settings(folder, **changes)
    with pytest.raises(SourceError, match=re.escape(message)):
        check_peft_adapter(folder)


def test_other_folders_are_refused(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"no adapter_config\.json in this directory"):
        check_peft_adapter(folder.parent)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(SourceError, match=r"has pickled weights \(adapter_model\.bin\); save"):
        check_peft_adapter(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(SourceError, match="not the settings of an adapter"):
        check_peft_adapter(folder)


def test_damaged_weights_are_refused(folder: Path) -> None:
    path, tensors = folder / WEIGHTS, load_file(folder / WEIGHTS)
    name = next(iter(tensors))
    cases = {
        "does not have the matrices lora_A and lora_B": {
            n: tensors[n] for n in tensors if n != name
        },
        "has NaN or infinite": tensors | {name: tensors[name] * float("nan")},
        "do not have the rank 2": {n: t[:1] if "A" in n else t[:, :1] for n, t in tensors.items()},
        "has lm_head.weight, which is not a low-rank": tensors | {"lm_head.weight": torch.ones(2)},
        "has no tensors": {},
    }
    for message, changed in cases.items():
        save_file({n: t.contiguous() for n, t in changed.items()}, path)
        with pytest.raises(SourceError, match=message):
            read_peft_adapter(folder)
    path.write_bytes(path.read_bytes()[:5])
    with pytest.raises(SourceError, match="damaged"):
        read_peft_adapter(folder)
