"""Small models and LoRA adapters of them that peft wrote."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import transformers_model

from edgetie.export.exporter import export_model
from edgetie.sources.source import Source

IDS = [5, 6, 7, 8, 9, 10]

ADAPTERS: dict[str, dict[str, Any]] = {
    "small": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
    "large": {
        "r": 8, "lora_alpha": 16, "use_rslora": True, "target_modules": "all-linear",
        "rank_pattern": {"layers.0.mlp.down_proj": 3}, "alpha_pattern": {"q_proj": 5},
    },
}  # fmt: skip
"""peft's settings of two adapters: other ranks, factors and layers."""


def write_adapter_of(model: Any, folder: Path, **settings: Any) -> np.ndarray:
    """Write a random adapter of a model; returns the logits ``(tokens, vocabulary)`` with it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, LoraConfig(**settings)).eval()
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.08)
        adapted.save_pretrained(folder)
    logits = logits_of(adapted)
    adapted.unload()
    return logits


def logits_of(model: Any) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(torch.tensor([IDS])).logits[0].numpy())


def source(kind: str = "Llama") -> Source:
    """A small model, always the same."""
    model = transformers_model(kind)
    return Source("transformers", kind, model, model.config, model.config.save_pretrained)


def change_settings(folder: Path, **changes: Any) -> None:
    """Change an adapter's ``adapter_config.json``."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class AdaptedBundle:
    """An fp32 bundle with both adapters.

    Attributes:
        folders: of the adapters in peft's format.
        logits: of torch, by the adapter's name; ``None`` for the base.
        directory: of the bundle.
    """

    def __init__(self, root: Path, kind: str = "Llama") -> None:
        self.folders = {name: root / name for name in ADAPTERS}
        self.logits: dict[str | None, np.ndarray] = {
            name: write_adapter_of(transformers_model(kind), self.folders[name], **settings)
            for name, settings in ADAPTERS.items()
        }
        self.logits[None] = logits_of(transformers_model(kind))
        self.directory = root / "fp32"
        export_model(source(kind), self.directory, adapters=self.folders)


def largest_error(logits: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the largest expected logit."""
    return float(np.abs(logits - expected).max() / np.abs(expected).max())
