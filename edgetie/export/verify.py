"""The exported file against torch: the largest logit error, alone, cached and padded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from edgetie.errors import ExportError
from edgetie.export.tasks import Task, logits_of
from edgetie.sources.pretrained import first_line

_TOKENS = 16
_PREFIX = 12
_SHORT = 7


@dataclass(frozen=True)
class Expected:
    """Random tokens, and torch's fp32 logits ``(tokens, vocabulary)`` for them."""

    tokens: np.ndarray[Any, Any]
    logits: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Agreement:
    """Largest absolute logit errors against torch in fp32.

    ``cached`` is after steps that read the KV cache, ``padded`` for the shorter row of a
    left-padded batch of two; ``relative`` is the largest of all over the largest logit.
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


def expect(module: torch.nn.Module, task: Task) -> Expected:
    """Run the module itself, before anything is changed about it."""
    count = min(_TOKENS, task.max_positions or _TOKENS)
    tokens = np.random.default_rng(0).integers(0, task.vocab_size, count)
    ids = torch.from_numpy(tokens)[None]
    with torch.no_grad():
        if task.position_ids:
            output = module(ids, position_ids=torch.arange(count)[None])
        else:
            output = module(ids)
    return Expected(tokens, logits_of(output)[0].float().numpy())


def measure(path: Path, task: Task, expected: Expected, dtype: type[np.floating[Any]]) -> Agreement:
    """Run the ONNX file on the CPU and compare.

    Raises:
        ExportError: if ONNX Runtime does not load or run it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # packing weights would only make this one-time run slower to start, and larger
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        return _measure(session, task, expected, dtype)
    except Exception as error:
        raise ExportError(
            f"{path.name}: ONNX Runtime cannot run it ({first_line(error)})"
        ) from error


def _measure(
    session: Any, task: Task, expected: Expected, dtype: type[np.floating[Any]]
) -> Agreement:
    tokens, count = expected.tokens, len(expected.tokens)
    prefix, short = min(_PREFIX, count - 1), min(_SHORT, count - 1)

    def run(ids: Any, mask: Any, past: list[Any]) -> tuple[Any, list[Any]]:
        if not past:
            past = [
                np.zeros((len(ids), layer.kv_heads, 0, layer.head_size), dtype)
                for layer in task.layers
                for _ in range(2)
            ]
        names = [value.name for value in session.get_inputs()]
        logits, *present = session.run(None, dict(zip(names, [ids, mask, *past], strict=True)))
        return logits[:, -1].astype(np.float32), present

    def error(got: Any, position: int) -> float:
        largest = float(np.abs(got - expected.logits[position]).max())
        return largest if np.isfinite(largest) else float("inf")  # max() would lose a NaN

    logits, cache = run(tokens[None, :prefix], np.ones((1, prefix), np.int64), [])
    prefill, cached = error(logits[0], prefix - 1), 0.0
    for position in range(prefix, count) if task.layers else ():
        mask = np.ones((1, position + 1), np.int64)
        logits, cache = run(tokens[None, position : position + 1], mask, cache)
        cached = max(cached, error(logits[0], position))
    rows = np.zeros((2, prefix), np.int64)
    mask = np.zeros((2, prefix), np.int64)
    rows[0, -short:], mask[0, -short:] = tokens[:short], 1
    rows[1], mask[1] = tokens[:prefix], 1
    logits, cache = run(rows, mask, [])
    padded = max(error(logits[0], short - 1), error(logits[1], prefix - 1))
    if task.layers:
        mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
        logits, _ = run(
            np.stack([tokens[short : short + 1], tokens[prefix : prefix + 1]]), mask, cache
        )
        padded = max(padded, error(logits[0], short), error(logits[1], prefix))
    return Agreement(prefill, cached, padded, float(np.abs(expected.logits).max()))
