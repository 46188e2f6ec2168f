"""Export masked language models: encoders with a head over the vocabulary."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from edgetie.bundle.names import MODEL
from edgetie.export.attention.broadcast import BroadcastAttention
from edgetie.export.attention.mask_branches import ResolveMaskBranches
from edgetie.export.attention.window_padding import example_length, pad_to_window
from edgetie.export.comparison import (
    Agreement,
    Array,
    ReferenceRun,
    cpu_session,
    largest_error,
)
from edgetie.export.tasks.base import (
    Graph,
    Task,
    logits_of,
    read_max_positions,
    token_input,
    torch_logits,
)

_SEQUENCE = 8  # example length to trace with
_TOKENS = 16  # compared with torch
_SHORT = 7  # of which the padded batch item has


@dataclass(frozen=True)
class MaskedTask(Task):
    """See :class:`edgetie.export.tasks.base.Task`.

    Attributes:
        inputs: those of ``input_ids``, ``attention_mask`` and ``token_type_ids`` that it takes.
        token_types: number of token types.
    """

    name = "masked-lm"

    inputs: tuple[str, ...]
    token_types: int

    def graphs(self, module: nn.Module, *, fused: bool, last_only: bool) -> list[Graph]:
        length = example_length(module, _SEQUENCE)
        tensors = tuple(token_input(name, length) for name in self.inputs)
        return [Graph(MODEL, _MaskedLM(module, self.inputs), tensors, ["logits"], parameters=0)]

    def run_reference(self, module: nn.Module) -> ReferenceRun:
        count = example_length(module, _TOKENS)
        count = min(count, self.max_positions or count)
        random = np.random.default_rng(0)
        inputs = {
            "input_ids": random.integers(0, self.vocab_size, (1, count)),
            "attention_mask": np.ones((1, count), np.int64),
            "token_type_ids": random.integers(0, self.token_types, (1, count)),
        }
        inputs = {name: inputs[name] for name in self.inputs}
        logits = torch_logits(module, **inputs)[0]
        # some models read padding, so the padded batch item has its own reference
        padded = torch_logits(module, **_padded(inputs))[1, :_SHORT]
        return ReferenceRun(inputs, np.concatenate([logits, padded]))

    def compare(self, directory: Path, reference: ReferenceRun, dtype: type[Any]) -> Agreement:
        inputs = reference.inputs
        count = inputs["input_ids"].shape[1]
        with cpu_session(directory / MODEL) as session:
            (logits,) = session.run(None, dict(inputs))
            prefill = largest_error(logits[0], reference.logits[:count])
            padded = 0.0
            if "attention_mask" in inputs:
                (logits,) = session.run(None, _padded(inputs))
                expected = reference.logits[count:]
                padded = largest_error(logits[1, : len(expected)], expected)
        return reference.agreement(prefill, 0.0, padded)


class _MaskedLM(nn.Module):
    """``forward`` with positional inputs, which returns only logits."""

    def __init__(self, model: nn.Module, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs

    def forward(self, *inputs: Tensor) -> Tensor:
        kwargs = dict(zip(self.inputs, inputs, strict=True))
        length = pad_to_window(self.model, kwargs)
        with BroadcastAttention(), ResolveMaskBranches(kwargs.get("attention_mask")):
            logits = logits_of(self.model(**kwargs))
        return logits if length is None else logits[:, :length]


def trial_run(module: nn.Module, config: Any) -> MaskedTask:
    """Run the model once on a few tokens."""
    parameters = inspect.signature(module.forward).parameters
    types = int(getattr(config, "type_vocab_size", 0) or 0)
    optional = ("attention_mask", "token_type_ids") if types > 1 else ("attention_mask",)
    names = ("input_ids", *(name for name in optional if name in parameters))
    inputs = dict.fromkeys(names, np.ones((1, _SHORT), np.int64))
    vocab_size = torch_logits(module, **inputs).shape[-1]
    return MaskedTask(vocab_size, read_max_positions(config, module), names, max(types, 1))


def _padded(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """A batch of two: the sequence, and its start padded to the same length."""
    batch = {name: np.repeat(array, 2, axis=0) for name, array in inputs.items()}
    for array in batch.values():
        array[1, _SHORT:] = 0
    return batch
