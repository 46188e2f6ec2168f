"""What a task is: which graphs a model becomes, and how they are held against torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

Array = np.ndarray[Any, Any]

FRAMES = "frames"
"""Name of a dimension that is no sequence of tokens: the length of a sound."""


@dataclass(frozen=True)
class LayerShape:
    """The cache of one layer: number of key-value heads and size of each.

    Attributes:
        value_size: size of the values' heads, where it is another than the keys'.
    """

    kv_heads: int
    head_size: int
    value_size: int | None = None

    @property
    def sizes(self) -> tuple[int, int]:
        """Of a key's head and of a value's."""
        return self.head_size, self.value_size or self.head_size


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
class Expected:
    """Inputs, and what torch in fp32 makes of them."""

    inputs: Mapping[str, Array]
    logits: Array


@dataclass(frozen=True)
class Agreement:
    """Largest absolute logit errors against torch in fp32.

    ``cached`` is after steps that read the KV cache, ``padded`` for the shorter row of a padded
    batch of two; ``relative`` is the largest of all over the largest logit.
    """

    prefill: float
    cached: float
    padded: float
    largest_logit: float

    @property
    def relative(self) -> float:
        return max(self.prefill, self.cached, self.padded) / max(self.largest_logit, 1e-12)

    def to_dict(self) -> dict[str, float]:
        return {**asdict(self), "relative": self.relative}


@dataclass(frozen=True)
class Task(ABC):
    """What a trial run of a model showed.

    Attributes:
        vocab_size: last dimension of the logits.
        max_positions: longest sequence, from the configuration.
        layers: the KV cache, empty without one.
        why_plain: why there is no cache, where one could be.
        audio_token_id: as in :class:`edgetie.bundle.Signature`.
    """

    name: ClassVar[str]

    vocab_size: int
    max_positions: int | None
    layers: tuple[LayerShape, ...] = field(default=(), kw_only=True)
    why_plain: str | None = field(default=None, kw_only=True)
    audio_token_id: int | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def replaces_attention(self) -> bool:
        """Whether transformers is told what attention is (:mod:`edgetie.export.attention`)."""

    def without_cache(self, why: str) -> Task | None:
        """The same task for a model whose cache turned out not to work; ``None`` if it has none."""
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
    def expect(self, module: torch.nn.Module) -> Expected:
        """Run the module itself, before anything is changed about it.

        Raises:
            ExportError: if it does not do what the task says.
        """

    @abstractmethod
    def measure(self, directory: Path, expected: Expected, dtype: type[Any]) -> Agreement:
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
    if isinstance(logits, (tuple, list)):
        logits = logits[0]
    if not isinstance(logits, torch.Tensor) or logits.ndim != 3:
        raise TypeError("forward must return logits of shape (batch, sequence, vocabulary)")
    return logits


def longest(config: Any) -> int | None:
    """The longest sequence a configuration allows, if it says."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def cache_names(count: int, prefix: str) -> list[str]:
    """Names of ``count`` layers' cache tensors, key before value."""
    return [f"{prefix}.{i}.{part}" for i in range(count) for part in ("key", "value")]


def largest_error(got: Array, expected: Array) -> float:
    """The largest absolute difference; infinite where something is not finite."""
    largest = float(np.abs(got.astype(np.float32) - expected).max())
    return largest if np.isfinite(largest) else float("inf")  # max() would lose a NaN
