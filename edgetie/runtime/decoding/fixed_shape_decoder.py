"""Decoding with graphs of fixed shapes (:mod:`edgetie.npu.fix_shapes`): a window that slides."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetie.errors import BundleError, EdgetieError, summarize
from edgetie.runtime.session import Session


class FixedDecoder:
    """A sequence that a model continues token by token, as :class:`edgetie.runtime.Decoder` does.

    Args:
        session: an opened bundle of fixed shapes.
        batch: must be 1.
        max_length: tokens there must be room for.

    Attributes:
        session: as given.
        batch: as given.
        max_length: tokens of the window.
        length: tokens so far.

    Raises:
        EdgetieError: if ``batch`` or ``max_length`` is more than the graphs take.
    """

    def __init__(self, session: Session, batch: int, max_length: int) -> None:
        self.session, self.batch, self.length = session, batch, 0
        self._path = session.bundle.model_path
        shapes = {info.name: info.shape for info in session.inputs}
        rows, self.max_length = (int(size) for size in shapes["attention_mask"])
        if batch != rows:
            raise EdgetieError(f"{self._path}: its shapes are fixed for one sequence, not {batch}")
        if max_length > self.max_length:
            raise EdgetieError(
                f"{self._path}: takes {self.max_length} tokens, not {max_length}; "
                "fix the shapes with a longer --context"
            )
        self._piece = 1
        if session.prefill is not None:
            self._piece = int(session.prefill.get_inputs()[0].shape[1])
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        self.length = 0
        self._mask = np.zeros((1, self.max_length), np.int64)
        self._cache = [
            np.zeros((1, heads, self.max_length, size), self.session.cache_dtype)
            for heads, _, size in (tensor.sizes for tensor in self.session.cache)
        ]

    def prefill(
        self,
        ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64] | None = None,
        audio_embeddings: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Append tokens; padding is left out.

        Returns:
            Logits ``(1, vocabulary)`` of the last one.

        Raises:
            EdgetieError: if the window would be exceeded, or there is no token.
            BundleError: if ONNX Runtime fails on the model.
        """
        tokens = ids if attention_mask is None else ids[:, attention_mask[0] != 0]
        if not tokens.size:
            raise EdgetieError("sequence 0 has no token; give at least one")
        logits = None
        while tokens.size:  # the first piece is the short one: its padding is the first to go
            short = tokens.shape[1] % self._piece
            whole = not short or not self.length  # padding would push other tokens out
            count = (short or self._piece) if whole else 1
            logits = self._run(tokens[:, :count], self._piece if whole else 1)
            tokens = tokens[:, count:]
        assert logits is not None
        return logits

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token, ``tokens[0]``; otherwise as :meth:`prefill`."""
        return self._run(tokens[:, None], 1)

    def _run(self, ids: NDArray[np.int64], size: int) -> NDArray[np.float32]:
        if self.length + ids.shape[1] > self.max_length:
            raise EdgetieError(
                f"{self.length + ids.shape[1]} tokens exceed the context of {self.max_length}; "
                "fix the shapes with a longer --context"
            )
        padding = size - ids.shape[1]
        valid = np.ones_like(ids)
        self._mask = np.concatenate(
            [self._mask[:, size:], np.zeros((1, padding), np.int64), valid], axis=1
        )
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": np.pad(ids, ((0, 0), (padding, 0))),
            "attention_mask": self._mask,
        }
        for tensor, values in zip(self.session.cache, self._cache, strict=True):
            feeds[tensor.past] = np.ascontiguousarray(values[:, :, size:])
        graph = self.session.ort if size == 1 else self.session.prefill
        outputs = ["logits", *(tensor.present for tensor in self.session.cache)]
        try:
            logits, *self._cache = graph.run(outputs, feeds)
        except Exception as error:  # pybind11 classes without a common base
            raise BundleError(f"{self._path}: ONNX Runtime failed: {summarize(error)}") from error
        self.length += ids.shape[1]
        last: NDArray[np.float32] = logits[:, -1].astype(np.float32)
        return last
