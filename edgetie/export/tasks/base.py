"""What a task defines: the graphs a model becomes, and how they are compared with torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgetie.export.comparison import Agreement, Array, ReferenceRun
from edgetie.graph.tensors import CacheTensor

BATCH = 2
"""Batch size of examples to trace with; the axis is dynamic."""
FRAMES = "frames"
"""Name of a dimension that is not a sequence of tokens: the length of audio."""


@dataclass(frozen=True)
class GraphInput:
    """An input to trace with: its name, an example, and the names of its dynamic axes."""

    name: str
    example: Tensor
    axes: Mapping[int, str]


def token_input(name: str, length: int, dimension: str = "sequence_length") -> GraphInput:
    """An input with a number for each of ``length`` tokens; ``dimension`` names that axis."""
    example = torch.ones(BATCH, length, dtype=torch.long)
    return GraphInput(name, example, {0: "batch_size", 1: dimension})


@dataclass(frozen=True)
class Graph:
    """One graph to be traced.

    Attributes:
        file: name of the ONNX file.
        module: what is traced.
        tensors: its inputs, in order.
        outputs: names of the outputs.
        parameters: how many inputs are not among the ``*args`` of ``forward``.
        finish: changes the converted graph.
    """

    file: str
    module: nn.Module
    tensors: tuple[GraphInput, ...]
    outputs: list[str]
    parameters: int
    finish: Callable[[ir.Model], None] | None = None

    @property
    def inputs(self) -> list[str]:
        return [tensor.name for tensor in self.tensors]

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        return tuple(tensor.example for tensor in self.tensors)

    @property
    def shapes(self) -> tuple[Any, ...]:
        """Their dynamic dimensions, as ``torch.export`` takes them, which finds the constraints."""
        axes = [dict.fromkeys(tensor.axes, torch.export.Dim.DYNAMIC) for tensor in self.tensors]
        own, others = axes[: self.parameters], axes[self.parameters :]
        return (*own, tuple(others)) if others else tuple(own)

    @property
    def dimensions(self) -> list[tuple[str, int, str]]:
        """Names of dynamic dimensions: ``(input, axis, name)``."""
        return [(t.name, axis, name) for t in self.tensors for axis, name in t.axes.items()]


@dataclass(frozen=True)
class Task(ABC):
    """How a model is exported, as a trial run of it showed.

    Attributes:
        vocab_size: last dimension of the logits.
        max_positions: longest sequence, from the configuration.
        cache: the tensors of its cache, empty without one.
        no_cache_reason: why a model that could have a cache has none.
        audio_token_id, image_token_id, image_tokens: as in
            :class:`edgetie.bundle.manifest.Signature`.
    """

    name: ClassVar[str]

    vocab_size: int
    max_positions: int | None
    cache: tuple[CacheTensor, ...] = field(default=(), kw_only=True)
    no_cache_reason: str | None = field(default=None, kw_only=True)
    audio_token_id: int | None = field(default=None, kw_only=True)
    image_token_id: int | None = field(default=None, kw_only=True)
    image_tokens: int | None = field(default=None, kw_only=True)

    @property
    def cached_attentions(self) -> int:
        """The number of attention layers with a cache of keys and values."""
        return sum(tensor.grows for tensor in self.cache) // 2

    @property
    def replaces_attention(self) -> bool:
        """Whether attention of transformers is replaced, see :mod:`transformers_attention`."""
        return False

    def without_cache(self) -> Task | None:
        """The same task without a cache; ``None`` if it has none already."""
        return None

    @abstractmethod
    def graphs(self, module: nn.Module, *, fused: bool, last_only: bool) -> list[Graph]:
        """The graphs to trace.

        Args:
            module: the model.
            fused: attention in one operator, or as the model computes it.
            last_only: logits of the last token of each batch item, if the task has them.
        """

    @abstractmethod
    def run_reference(self, module: nn.Module) -> ReferenceRun:
        """Run the module in torch, before anything about it is changed.

        Raises:
            ExportError: if it is not a model for this task.
        """

    @abstractmethod
    def compare(self, directory: Path, reference: ReferenceRun, dtype: type[Any]) -> Agreement:
        """Run the written graphs on the CPU and compare their logits with the reference's.

        Raises:
            ExportError: if ONNX Runtime does not load or run one.
        """


def key_value(layer: str, key: Tensor, value: Tensor) -> tuple[CacheTensor, ...]:
    """Describe the cache of keys and values ``(batch, heads, length, size)`` of a layer."""
    return tuple(
        CacheTensor(f"{layer}.{part}", (tensor.shape[1], 0, tensor.shape[3]))
        for part, tensor in (("key", key), ("value", value))
    )


def cache_inputs(
    cache: tuple[CacheTensor, ...],
    length: int,
    dtype: torch.dtype,
    dimension: str | None = "past_sequence_length",
) -> list[GraphInput]:
    """Inputs of a cache to trace with; ``dimension`` names its length, if that is dynamic."""
    return [
        GraphInput(
            tensor.past,
            torch.zeros(tensor.shape(BATCH, length), dtype=dtype),
            {0: "batch_size"}
            | ({tensor.sizes.index(0) + 1: dimension} if tensor.grows and dimension else {}),
        )
        for tensor in cache
    ]


def logits_of(output: Any) -> Tensor:
    """The logits in whatever a language model's ``forward`` returns.

    Raises:
        TypeError: if there are none.
    """
    logits = getattr(output, "logits", output)
    if isinstance(logits, Mapping):
        logits = logits.get("logits")
    if isinstance(logits, (tuple, list)):  # a loss may come first
        logits = next((each for each in logits if each is not None), None)
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        raise TypeError("forward must return logits of shape (batch, sequence, vocabulary)")
    return logits


def torch_logits(module: nn.Module, *args: Any, **kwargs: Any) -> Array:
    """Run a module on arrays or tensors; returns its logits in fp32."""
    with torch.no_grad():
        output = module(
            *map(torch.as_tensor, args),
            **{name: torch.as_tensor(value) for name, value in kwargs.items()},
        )
    return np.asarray(logits_of(output).float().numpy())


def read_max_positions(config: Any, module: nn.Module) -> int | None:
    """The longest sequence that the configuration allows, or ``None`` if it has no limit."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or not 1 <= limit < 1 << 31:
        return None
    offsets = [  # as in RoBERTa, where position 0 comes after that of padding
        part.padding_idx + 1
        for name, part in module.named_modules()
        if isinstance(part, nn.Embedding)
        and part.padding_idx is not None
        and part.num_embeddings == limit
        and "position" in name
    ]
    return limit - max(offsets, default=0)
