"""Run exported graphs on the CPU and compare their logits with torch's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from edgetie.errors import ExportError, summarize
from edgetie.graph.constants import MASKED_LOGIT
from edgetie.graph.tensors import CacheTensor
from edgetie.providers.registry import AUTO, find_provider, register_plugin
from edgetie.runtime.session import start_session

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ReferenceRun:
    """Inputs, and the logits that torch computes from them in fp32, with an adapter if named."""

    inputs: Mapping[str, Array]
    logits: Array
    adapter: str | None = None

    def agreement(self, prefill: float, cached: float, padded: float) -> Agreement:
        """Relate errors to the largest logit."""
        return Agreement(prefill, cached, padded, largest_logit(self.logits))


@dataclass(frozen=True)
class Agreement:
    """Largest absolute logit errors against torch in fp32.

    Attributes:
        prefill: of a prompt.
        cached: of tokens that follow one by one and read the cache.
        padded: of a padded batch of two.
        largest_logit: to which ``relative``, the largest error of all, is related.
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

    Products of quantized weights are edgetie's own, if it is installed: ONNX Runtime's round
    activations to 8 bits.

    Raises:
        ExportError: if ONNX Runtime does not load the graph, or a run of it fails.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # prepacked weights would only make this one-time run slower to start, and larger
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        provider = find_provider(AUTO if _is_quantized(path) else "cpu")
        if provider.plugin:
            options.add_provider_for_devices(register_plugin(provider)[:1], dict(provider.options))
        yield start_session(str(path), options, provider)
    except Exception as error:
        raise ExportError(
            f"{path.name}: ONNX Runtime cannot run it ({summarize(error)})"
        ) from error


def _is_quantized(path: Path) -> bool:
    return any(node.op_type == "MatMulNBits" for node in ir.load(path).graph)


@dataclass(frozen=True)
class DecoderRunner:
    """A decoder's session, its cache, the dtype of the cache, and the inputs of an adapter."""

    session: Any
    cache: tuple[CacheTensor, ...]
    dtype: type[Any]
    adapter: Mapping[str, Array] = field(default_factory=dict)

    def __call__(
        self, inputs: Sequence[Array], past: Sequence[Array] = ()
    ) -> tuple[Array, list[Array]]:
        """Run once on the inputs before the cache and a cache, by default the empty one.

        Returns:
            The logits ``(batch, count, vocabulary)``, and the cache after the run.
        """
        if not past:
            past = [np.zeros(t.shape(len(inputs[0])), self.dtype) for t in self.cache]
        names = [value.name for value in self.session.get_inputs()]
        feeds = dict(zip(names, [*inputs, *past], strict=True))
        logits, *present = self.session.run(None, {**feeds, **self.adapter})
        return logits, present

    def errors(
        self, feeds: Callable[[int, int], Sequence[Array]], expected: Array, prefix: int
    ) -> tuple[float, float]:
        """The largest errors of a run on ``prefix`` tokens, and of runs on the others one by one.

        Args:
            feeds: returns the inputs before the cache for tokens ``start`` to ``end``.
            expected: logits ``(count, vocabulary)`` of all tokens.
            prefix: number of tokens of the first run.
        """
        logits, past = self(feeds(0, prefix))
        prefill = largest_error(logits[0], expected[prefix - logits.shape[1] : prefix])
        cached = 0.0
        for position in range(prefix, len(expected)) if self.cache else ():
            logits, past = self(feeds(position, position + 1), past)
            cached = max(cached, largest_error(logits[0, -1], expected[position]))
        return prefill, cached


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
