"""What a task is: which graphs a model becomes, and how they are held against torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from edgetie.export.tasks.comparison import (
    Agreement,
    ReferenceRun,
)
from edgetie.graph.tensors import CacheTensor

FRAMES = "frames"
"""Name of a dimension that is no sequence of tokens: the length of a sound."""


def key_value(layer: str, key: torch.Tensor, value: torch.Tensor) -> tuple[CacheTensor, ...]:
    """The cache of an attention layer whose keys and values are ``(batch, heads, length, size)``.

    ``layer`` is its number, and what else its tensors' names begin with.
    """
    return tuple(
        CacheTensor(f"{layer}.{part}", (tensor.shape[1], 0, tensor.shape[3]))
        for part, tensor in (("key", key), ("value", value))
    )


@dataclass(frozen=True)
class Graph:
    """One graph to be traced.

    Attributes:
        file: name of the ONNX file.
        module: what is traced.
        arguments: example inputs.
        shapes: their dynamic dimensions, as ``torch.export`` takes them.
        inputs: names of the inputs.
        outputs: names of the outputs.
        dimensions: names of dynamic dimensions: ``(input, axis, name)``.
    """

    file: str
    module: torch.nn.Module
    arguments: tuple[Any, ...]
    shapes: Any
    inputs: list[str]
    outputs: list[str]
    dimensions: tuple[tuple[str, int, str], ...]


@dataclass(frozen=True)
class Task(ABC):
    """What a trial run of a model showed.

    Attributes:
        vocab_size: last dimension of the logits.
        max_positions: longest sequence, from the configuration.
        cache: its cache, tensor by tensor, empty without one.
        no_cache_reason: why there is no cache, where one could be.
        audio_token_id: as in :class:`edgetie.bundle.bundle.Signature`.
    """

    name: ClassVar[str]

    vocab_size: int
    max_positions: int | None
    cache: tuple[CacheTensor, ...] = field(default=(), kw_only=True)
    no_cache_reason: str | None = field(default=None, kw_only=True)
    audio_token_id: int | None = field(default=None, kw_only=True)

    @property
    def cached_attentions(self) -> int:
        """How many attention layers have a cache of keys and values."""
        return sum(tensor.grows for tensor in self.cache) // 2

    @property
    @abstractmethod
    def replaces_attention(self) -> bool:
        """Whether transformers is told what attention is (:mod:`transformers_attention`)."""

    def without_cache(self) -> Task | None:
        """Return the same task without a cache; ``None`` if it has none already."""
        return None

    @abstractmethod
    def graphs(self, module: torch.nn.Module, *, fused: bool, last_only: bool) -> list[Graph]:
        """The graphs to trace.

        Args:
            module: the model.
            fused: attention in one operator, or as the model computes it.
            last_only: logits of each row's last token, where the task has them.
        """

    @abstractmethod
    def run_reference(self, module: torch.nn.Module) -> ReferenceRun:
        """Run the module itself, before anything is changed about it.

        Raises:
            ExportError: if it does not do what the task says.
        """

    @abstractmethod
    def compare(self, directory: Path, expected: ReferenceRun, dtype: type[Any]) -> Agreement:
        """Run the written graphs on the CPU and compare.

        Raises:
            ExportError: if ONNX Runtime does not load or run one.
        """


def logits_of(output: Any) -> torch.Tensor:
    """The logits in whatever a language model's ``forward`` returns.

    Raises:
        TypeError: if there are none.
    """
    logits = getattr(output, "logits", output)
    if isinstance(logits, Mapping):
        logits = logits.get("logits")
    if isinstance(logits, (tuple, list)):  # a loss may stand in front
        logits = next((each for each in logits if each is not None), None)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 3:
        raise TypeError("forward must return logits of shape (batch, sequence, vocabulary)")
    return logits


def longest(config: Any, module: torch.nn.Module) -> int | None:
    """The longest sequence a configuration allows, if it says.

    Tables of positions as in RoBERTa begin behind the row of padding.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "max_position_embeddings", None)
    if not isinstance(found, int) or found < 1:
        return None
    behind = [
        part.padding_idx + 1
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Embedding)
        and part.padding_idx is not None
        and part.num_embeddings == found
        and "position" in name
    ]
    return found - max(behind, default=0)
