"""A loaded model, ready to be exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """

    kind: str
    name: str
    module: torch.nn.Module
    config: Any
    save_extras: Callable[[Path], None]
    task: str = "auto"
    unused: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.task == "auto":
            self.task = task_of(self.config, [self.architecture])

    @property
    def architecture(self) -> str:
        return type(self.module).__name__
