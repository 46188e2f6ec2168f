"""Decoding with graphs of fixed shapes (:mod:`edgetie.npu.fix_shapes`): a sliding context."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetie.errors import EdgetieError
from edgetie.runtime.images.embeddings import ImageEmbeddings
from edgetie.runtime.session import Session, onnxruntime_errors


class FixedShapeDecoder:
    """The decoder of a bundle of fixed shapes, for one sequence; used as :class:`Decoder` is."""

    def __init__(self, session: Session, batch: int, max_length: int) -> None:
        """Check sizes; ``max_length`` becomes that of the graphs.

        Raises:
            EdgetieError: if ``batch`` or ``max_length`` is more than the graphs accept.
        """
        self.session, self.batch, self.length = session, batch, 0
        self._path = session.bundle.model_path
        shapes = {info.name: info.shape for info in session.inputs}
        graph_batch, self.max_length = (int(size) for size in shapes["attention_mask"])
        if batch != graph_batch:
            raise EdgetieError(f"{self._path}: its shapes are fixed for one sequence, not {batch}")
        if max_length > self.max_length:
            raise EdgetieError(
                f"{self._path}: accepts {self.max_length} tokens, not {max_length}; "
                "fix the shapes with a longer context"
            )
        # tokens of a prompt that one run reads
        self._chunk = session.prefill.get_inputs()[0].shape[1] if session.prefill else 1
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        self.length = 0
        self._mask = np.zeros((1, self.max_length), np.int64)
        self._cache = [
            np.zeros((1, heads, self.max_length, size), self.session.cache_dtype)
            for heads, _, size in (tensor.sizes for tensor in self.session.cache)
        ]

    def rewind(self, length: int) -> None:
        """Forget the sequence unless it has ``length`` tokens: its cache is no longer aligned."""
        if length < self.length:
            self.reset()

    def prefill(
        self,
        prompt: NDArray[Any],
        attention_mask: NDArray[np.int64] | None = None,
        audio_embeddings: NDArray[np.float32] | None = None,
        image_embeddings: ImageEmbeddings | None = None,
    ) -> NDArray[np.float32]:
        """Append tokens ``(1, count)``; padding is left out.

        Raises:
            EdgetieError: if the context would be exceeded, or there is no token.
            BundleError: if ONNX Runtime fails on the model.
        """
        tokens = prompt if attention_mask is None else prompt[:, attention_mask[0] != 0]
        if not tokens.size:
            raise EdgetieError("sequence 0 has no token; give at least one")
        while tokens.size:  # the first chunk is the short one: its padding is the first to go
            short = tokens.shape[1] % self._chunk
            whole = not short or not self.length  # padding would push other tokens out
            count = (short or self._chunk) if whole else 1
            logits = self._run(tokens[:, :count], self._chunk if whole else 1)
            tokens = tokens[:, count:]
        return logits

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token, ``tokens[0]``; otherwise as :meth:`prefill`."""
        return self._run(tokens[:, None], 1)

    def _run(self, ids: NDArray[np.int64], size: int) -> NDArray[np.float32]:
        length = self.length + ids.shape[1]
        if length > self.max_length:
            raise EdgetieError(
                f"{length} tokens exceed the context of {self.max_length}; "
                "fix the shapes with a longer context"
            )
        padding = (0, 0), (size - ids.shape[1], 0)
        new = np.pad(np.ones_like(ids), padding)
        self._mask = np.concatenate([self._mask[:, size:], new], axis=1)
        feeds = {"input_ids": np.pad(ids, padding), "attention_mask": self._mask}
        for tensor, values in zip(self.session.cache, self._cache, strict=True):
            feeds[tensor.past] = np.ascontiguousarray(values[:, :, size:])
        graph = self.session.ort if size == 1 else self.session.prefill
        outputs = ["logits", *(tensor.present for tensor in self.session.cache)]
        with onnxruntime_errors(self._path):
            logits, *self._cache = graph.run(outputs, feeds)
        self.length = length
        return np.asarray(logits[:, -1], np.float32)
