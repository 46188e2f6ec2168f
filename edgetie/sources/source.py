"""A loaded model, ready to be exported, and how it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetie.sources.quantized.tensor import QuantizedTensor
from edgetie.sources.task_detection import task_of

if TYPE_CHECKING:
    import torch


@dataclass
class Source:
    """A model ready to be traced.

    Attributes:
        kind: ``transformers``, ``gguf`` or ``factory``.
        name: what the user called it, without the path to it.
        module: the model, in evaluation mode, fp32.
        config: its transformers configuration; ``None`` for a module without one.
        save_extras: writes configuration and tokenizer files into a directory.
        task: one of :data:`~edgetie.sources.task_detection.TASKS`; ``auto`` detects it from the
            module's class or its configuration.
        unused: names of weights in its files that the model does not have.
        image_size: height and width of the images that its processor makes, if they have one size.
        quantized: weights that its files have quantized, by the names of parameters. The module has
            them dequantized.
    """

    kind: str
    name: str
    module: torch.nn.Module
    config: Any
    save_extras: Callable[[Path], None]
    task: str = "auto"
    unused: Sequence[str] = ()
    image_size: tuple[int, int] | None = None
    quantized: Mapping[str, QuantizedTensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.task == "auto":
            self.task = task_of(self.config, [self.architecture])
            if self.task == "causal-lm" and hasattr(self.module, "get_image_features"):
                self.task = "image-text-to-text"

    @property
    def architecture(self) -> str:
        return type(self.module).__name__


CACHE_KEYWORDS = ("cache", "past_key_values")
"""Names of the KV cache in transformers, as argument and in the output: from 5.24 on, before."""


def cache_keyword(module: torch.nn.Module) -> str | None:
    """The name of the argument that takes a transformers KV cache, and of the output's cache."""
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in CACHE_KEYWORDS if name in parameters), None)
