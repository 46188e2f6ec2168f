"""Run exported graphs on the CPU and compare their logits with torch's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edgetie.errors import ExportError, summarize
from edgetie.graph.constants import MASKED_LOGIT
from edgetie.graph.tensors import CacheTensor

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ReferenceRun:
    """Inputs, and the logits that torch computes from them in fp32."""

    inputs: Mapping[str, Array]
    logits: Array


@dataclass(frozen=True)
class Agreement:
    """Largest absolute logit errors against torch in fp32.

    ``cached`` is after steps that read the cache, ``padded`` that of a padded batch of two;
    ``relative`` is the largest of all over the largest logit.
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


@contextlib.contextmanager
def cpu_session(path: Path) -> Iterator[Any]:
    """Open a session on the CPU.

    Raises:
        ExportError: if ONNX Runtime does not load the graph, or a run of it fails.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # prepacked weights would only make this one-time run slower to start, and larger
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        yield onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            f"{path.name}: ONNX Runtime cannot run it ({summarize(error)})"
        ) from error


@dataclass(frozen=True)
class DecoderRunner:
    """A decoder's session, its cache and the dtype of the cache."""

    session: Any
    cache: tuple[CacheTensor, ...]
    dtype: type[Any]

    def __call__(
        self, inputs: Sequence[Array], past: Sequence[Array] = ()
    ) -> tuple[Array, list[Array]]:
        """Run once.

        Args:
            inputs: those before the cache, in order.
            past: the cache; by default the empty one.

        Returns:
            The logits ``(batch, count, vocabulary)``, and the cache after the run.
        """
        if not past:
            past = [np.zeros(t.shape(len(inputs[0])), self.dtype) for t in self.cache]
        names = [value.name for value in self.session.get_inputs()]
        logits, *present = self.session.run(None, dict(zip(names, [*inputs, *past], strict=True)))
        return logits, present


def left_pad(sequences: Sequence[Array]) -> tuple[Array, Array]:
    """Pad token sequences on the left to one length; returns tokens and attention mask."""
    length = max(map(len, sequences))
    tokens, mask = (np.zeros((len(sequences), length), np.int64) for _ in range(2))
    for item, sequence in enumerate(sequences):
        tokens[item, length - len(sequence) :] = sequence
        mask[item, length - len(sequence) :] = 1
    return tokens, mask


def largest_error(logits: Array, expected: Array) -> float:
    """The largest absolute difference; infinite if a logit is not finite.

    Tokens that both exclude, by a logit of :data:`MASKED_LOGIT`, do not count.
    """
    logits = logits.astype(np.float32)
    difference = np.abs(logits - expected)
    difference[(logits <= -MASKED_LOGIT) & (expected <= -MASKED_LOGIT)] = 0
    largest = float(difference.max())
    return largest if np.isfinite(largest) else float("inf")  # max() would lose a NaN


def largest_logit(logits: Array) -> float:
    """The largest absolute logit, without those of excluded tokens."""
    return float(np.abs(logits, where=~(logits <= -MASKED_LOGIT), out=np.zeros_like(logits)).max())
