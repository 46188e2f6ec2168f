"""Masked language models: encoders that fill in tokens, with a head over the vocabulary."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgetie.bundle.names import MODEL
from edgetie.export.attention.broadcast import BroadcastAttention
from edgetie.export.attention.mask_branches import ResolveMaskBranches
from edgetie.export.attention.window_padding import example_length, pad_to_window
from edgetie.export.tasks.base import (
    Graph,
    Task,
    logits_of,
    longest,
)
from edgetie.export.tasks.comparison import (
    Agreement,
    ReferenceRun,
    cpu_session,
    largest_error,
    largest_logit,
)

_BATCH, _SEQUENCE = 2, 8
_TOKENS = 16  # compared with torch
_SHORT = 7


@dataclass(frozen=True)
class MaskedTask(Task):
    """See :class:`edgetie.export.tasks.base.Task`.

    Attributes:
        inputs: those of ``input_ids``, ``attention_mask`` and ``token_type_ids`` it takes.
        token_types: number of token types.
    """

    name = "masked-lm"

    inputs: tuple[str, ...]
    token_types: int

    @property
    def replaces_attention(self) -> bool:
        return False

    def graphs(self, module: torch.nn.Module, *, fused: bool, last_only: bool) -> list[Graph]:
        dynamic = torch.export.Dim.DYNAMIC  # a table of positions bounds the sequence
        shape = _BATCH, example_length(module, _SEQUENCE)
        ids = {
            name: torch.full(shape, int(name != "token_type_ids"), dtype=torch.long)
            for name in self.inputs
        }
        return [
            Graph(
                file=MODEL,
                module=_MaskedLM(module, self.inputs),
                arguments=tuple(ids.values()),
                shapes=(tuple({0: dynamic, 1: dynamic} for _ in ids),),
                inputs=list(self.inputs),
                outputs=["logits"],
                dimensions=(("input_ids", 0, "batch_size"), ("input_ids", 1, "sequence_length")),
            )
        ]

    def run_reference(self, module: torch.nn.Module) -> ReferenceRun:
        count = example_length(module, _TOKENS)
        count = min(count, self.max_positions or count)
        random = np.random.default_rng(0)
        inputs = {
            "input_ids": random.integers(0, self.vocab_size, (1, count)),
            "attention_mask": np.ones((1, count), np.int64),
            "token_type_ids": random.integers(0, self.token_types, (1, count)),
        }
        inputs = {name: inputs[name] for name in self.inputs}
        whole = _run(module, inputs)[0]
        padded = _run(module, _padded(inputs))[1, :_SHORT]  # some models read what is padding
        return ReferenceRun(inputs, np.concatenate([whole, padded]))

    def compare(self, directory: Path, expected: ReferenceRun, dtype: type[Any]) -> Agreement:
        inputs = expected.inputs
        count = inputs["input_ids"].shape[1]
        whole, short = expected.logits[:count], expected.logits[count:]
        with cpu_session(directory / MODEL) as session:
            (logits,) = session.run(["logits"], dict(inputs))
            prefill = largest_error(logits[0], whole)
            padded = 0.0
            if "attention_mask" in inputs:
                (logits,) = session.run(["logits"], _padded(inputs))
                padded = largest_error(logits[1, : len(short)], short)
        return Agreement(prefill, 0.0, padded, largest_logit(expected.logits))


class _MaskedLM(torch.nn.Module):
    """``forward`` with the inputs by position, logits only."""

    def __init__(self, model: torch.nn.Module, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        given = dict(zip(self.inputs, inputs, strict=True))
        length = pad_to_window(self.model, given)
        with BroadcastAttention(), ResolveMaskBranches(given.get("attention_mask")):
            logits = logits_of(self.model(**given))
        return logits if length is None else logits[:, :length]


def trial_run(module: torch.nn.Module, config: Any) -> MaskedTask:
    """Run the model once on a few tokens."""
    parameters = inspect.signature(module.forward).parameters
    types = int(getattr(config, "type_vocab_size", 0) or 0)
    inputs = ["input_ids"]
    if "attention_mask" in parameters:
        inputs.append("attention_mask")
    if "token_type_ids" in parameters and types > 1:
        inputs.append("token_type_ids")
    given = {name: np.ones((1, _SHORT), np.int64) for name in inputs}
    if types > 1 and "token_type_ids" in given:
        given["token_type_ids"][:] = 0
    logits = _run(module, given)[0]
    return MaskedTask(logits.shape[-1], longest(config, module), tuple(inputs), max(types, 1))


def _run(module: torch.nn.Module, inputs: dict[str, Any]) -> Any:
    with torch.no_grad():
        output = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return logits_of(output).float().numpy()


def _padded(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of two: the sequence, and its start padded to the same length."""
    rows = {name: np.repeat(array, 2, axis=0) for name, array in inputs.items()}
    for array in rows.values():
        array[1, _SHORT:] = 0
    return rows
