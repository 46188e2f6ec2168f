"""Read LoRA adapters in peft's format: ``adapter_config.json`` and safetensors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetie.bundle.names import ADAPTER
from edgetie.errors import SourceError, summarize

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"(.+)\.lora_(?:embedding_)?(A|B)(?:\.weight)?")
_COPY = ".base_layer.weight"  # of a weight of the base, next to its update
_MERGE = "merge it into its base (peft's merge_and_unload) and export the result"
_UNSUPPORTED = {
    "use_dora": "scales whole weights (DoRA)",
    "lora_bias": "has biases",
    "modules_to_save": "replaces whole modules (a tied table becomes two)",
    "target_parameters": "changes parameters of experts",
    "layer_replication": "repeats layers",
    "alora_invocation_tokens": "starts at certain tokens (aLoRA)",
    "trainable_token_indices": "changes rows of the embedding table (and of a head tied to it)",
    "use_qalora": "pools its inputs (QALoRA)",
    "use_bdlora": "has block-diagonal matrices",
    "arrow_config": "is a mixture of adapters",
    "monteclora_config": "draws random numbers",
    "kasa_config": "changes the base's weights (KaSA)",
}
"""Settings that change more than ``x A B`` adds, and what they do."""
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal")
"""Ways to initialize an adapter, besides peft's own, that leave the base as it is."""


@dataclass(frozen=True)
class LowRankUpdate:
    """What an adapter adds to one linear layer: ``x down up``, in float32.

    Attributes:
        down: ``(in, rank)``.
        up: ``(rank, out)``, with peft's factor in it.
    """

    down: NDArray[np.float32]
    up: NDArray[np.float32]


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter that was read.

    Attributes:
        directory: where it was read.
        base: name of the model that it was trained on.
        updates: by the name of the module in that model.
    """

    directory: Path
    base: str
    updates: dict[str, LowRankUpdate]

    @property
    def rank(self) -> int:
        """The largest rank of an update."""
        return max(len(update.up) for update in self.updates.values())


def check_peft_adapter(directory: Path) -> dict[str, Any]:
    """Read an adapter's settings, and refuse what only a merged export can do.

    Raises:
        SourceError: if there is no adapter, or it is more than low-rank updates of linear layers.
    """
    path = directory / ADAPTER
    if not path.is_file():
        raise SourceError(f"{directory}: no {ADAPTER} in this directory, so it is not an adapter")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        kind = settings["peft_type"]
        rank, alpha = settings["r"], settings["lora_alpha"]
        is_valid = kind != "LORA" or (rank > 0 and alpha == alpha)
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path}: not the settings of an adapter ({error!r})") from error
    if not is_valid:
        raise SourceError(f"{path}: not the settings of an adapter (r {rank}, alpha {alpha})")
    reason = f"is of type {kind}" if kind != "LORA" else _why_unsupported(settings)
    if reason:
        raise SourceError(f"{directory}: {reason}, which cannot be added at run time; {_MERGE}")
    if not (directory / _WEIGHTS).is_file():
        pickles = sorted(directory.glob("adapter_model.bin"))
        weights = f"pickled weights ({pickles[0].name})" if pickles else "no weights"
        raise SourceError(
            f"{directory}: has {weights}; save it with peft's save_pretrained, which writes "
            f"{_WEIGHTS}"
        )
    return dict(settings)


def _why_unsupported(settings: Mapping[str, Any]) -> str | None:
    start = settings.get("init_lora_weights", True)
    if settings.get("bias", "none") != "none":
        return "changes biases"
    if isinstance(start, str) and start not in _PLAIN_STARTS:
        return f"changes the base's weights (init_lora_weights {start})"
    return next((text for name, text in _UNSUPPORTED.items() if settings.get(name)), None)


def read_peft_adapter(directory: Path) -> PeftAdapter:
    """Read an adapter.

    Raises:
        SourceError: as :func:`check_peft_adapter`, or if its tensors are damaged or not those of
            low-rank updates.
    """
    settings = check_peft_adapter(directory)
    path = directory / _WEIGHTS
    pairs: dict[str, dict[str, NDArray[np.float32]]] = {}
    for name, array in _read_tensors(path).items():
        if name.endswith(_COPY):
            continue
        match = _TENSOR.fullmatch(name.removeprefix(_PREFIX))
        if match is None:
            raise SourceError(
                f"{path}: has {name}, which is not a low-rank update of a linear layer; {_MERGE}"
            )
        pairs.setdefault(match[1], {})[match[2]] = array
    updates = {name: _update(path, name, pair, settings) for name, pair in pairs.items()}
    if not updates:
        raise SourceError(f"{path}: has no tensors; train it, or leave it out")
    base = str(settings.get("base_model_name_or_path") or "another model")
    return PeftAdapter(directory, Path(base).name if Path(base).is_absolute() else base, updates)


def _read_tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    from safetensors.torch import load_file  # numpy has no bfloat16

    try:
        tensors = load_file(path)
    except Exception as error:  # of the library's own type
        raise SourceError(f"{path}: damaged ({summarize(error)}); download it again") from error
    arrays = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    wrong = next((name for name, array in arrays.items() if not np.isfinite(array).all()), None)
    if wrong is not None:
        raise SourceError(f"{path}: {wrong} has NaN or infinite values; train it again")
    return arrays


def _update(
    path: Path, name: str, pair: Mapping[str, NDArray[np.float32]], settings: Mapping[str, Any]
) -> LowRankUpdate:
    """Check both matrices of a module and multiply the second by peft's factor."""
    if len(pair) != 2 or any(array.ndim != 2 for array in pair.values()):
        raise SourceError(f"{path}: {name} does not have the matrices lora_A and lora_B of a layer")
    rank = _setting(settings, "rank_pattern", name, "r")
    if rank != pair["A"].shape[0] or rank != pair["B"].shape[1]:
        raise SourceError(
            f"{path}: lora_A {pair['A'].shape} and lora_B {pair['B'].shape} of {name} do not have "
            f"the rank {rank} of {ADAPTER}; copy both files again"
        )
    divisor = math.sqrt(rank) if settings.get("use_rslora") else rank
    factor = _setting(settings, "alpha_pattern", name, "lora_alpha") / divisor
    return LowRankUpdate(pair["A"].T, pair["B"].T * np.float32(factor))


def _setting(settings: Mapping[str, Any], patterns: str, name: str, default: str) -> Any:
    """A setting of one module: that of the first pattern that matches its name's end."""
    for pattern, value in (settings.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return settings[default]
