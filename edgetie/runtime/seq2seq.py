"""Encoder–decoder models step by step: the text is read once, its keys and values stay bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgetie.errors import BundleError, EdgetieError
from edgetie.runtime.memory import release_heap
from edgetie.runtime.session import Session, one_line


class Seq2SeqDecoder:
    """A batch of texts, each continued token by token on the decoder's side.

    It is driven like a :class:`~edgetie.runtime.decoder.Decoder`: ``prefill`` reads the texts and
    the decoder's first tokens, ``step`` appends one token to each.

    Attributes:
        session: the opened model, with its encoder.
        batch: number of texts.
        max_length: most tokens on the decoder's side, those it starts with included.
        length: tokens there so far.
    """

    def __init__(self, session: Session, batch: int, max_length: int) -> None:
        """Args:
        session: of a bundle with an encoder.
        batch: number of texts.
        max_length: most tokens on the decoder's side.

        Raises:
            BundleError: if the bundle does not say what its decoder starts with.
        """
        manifest = session.bundle.manifest
        if manifest is None or session.encoder is None or not manifest.signature.start_token_ids:
            raise BundleError(
                f"{session.bundle.directory}: does not say which token its decoder starts with; "
                "set decoder_start_token_id in the model's configuration and export it again"
            )
        self.session, self.batch, self.max_length, self.length = session, batch, max_length, 0
        self._start = manifest.signature.start_token_ids
        self._binding = session.ort.io_binding()
        self._bound: list[Any] = []  # what the binding reads must live as long as it does

    def reset(self) -> None:
        """Forget the texts."""
        self.length = 0

    def prefill(
        self, ids: NDArray[np.int64], attention_mask: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Read texts and start their continuations.

        Args:
            ids: ``(batch, count)`` token ids, padded on the right.
            attention_mask: ``(batch, count)``, 0 where ``ids`` is padding.

        Returns:
            Logits ``(batch, vocabulary)`` of the first token to come.

        Raises:
            BundleError: if ONNX Runtime fails on the model.
        """
        session, mask = (
            self.session,
            np.ones_like(ids) if attention_mask is None else attention_mask,
        )
        assert session.encoder is not None
        encoding = session.encoder.io_binding()
        encoding.bind_cpu_input("input_ids", np.ascontiguousarray(ids))
        encoding.bind_cpu_input("attention_mask", np.ascontiguousarray(mask))
        for tensor in session.cross:
            encoding.bind_output(tensor.present, session.device)
        self._run(session.encoder, encoding)
        self._bound = [np.ascontiguousarray(mask), *encoding.get_outputs()]
        self._binding.clear_binding_inputs()
        self._binding.bind_cpu_input("encoder_attention_mask", self._bound[0])
        for tensor, value in zip(session.cross, self._bound[1:], strict=True):
            self._binding.bind_ortvalue_input(tensor.past, value)
        for tensor in session.cache:
            shape = (self.batch, tensor.kv_heads, 0, tensor.head_size)
            empty = ort.OrtValue.ortvalue_from_shape_and_type(
                shape, np.dtype(session.cache_dtype), session.device, 0
            )
            self._binding.bind_ortvalue_input(tensor.past, empty)
        self.length = 0
        return self._forward(np.tile(np.array(self._start, np.int64), (self.batch, 1)))

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token, ``tokens[b]``, to every continuation."""
        if self.length == len(self._start):
            if self.session.lookups is not None:
                self.session.lookups.release()
            release_heap()
        return self._forward(np.ascontiguousarray(tokens[:, None]))

    def _forward(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        if self.length + ids.shape[1] > self.max_length:
            raise EdgetieError(f"more than max_length {self.max_length} tokens")
        self._binding.bind_cpu_input("input_ids", ids)
        self._binding.bind_output("logits", "cpu")
        for tensor in self.session.cache:
            self._binding.bind_output(tensor.present, self.session.device)
        self._run(self.session.ort, self._binding)
        logits, *presents = self._binding.get_outputs()
        for tensor, present in zip(self.session.cache, presents, strict=True):
            self._binding.bind_ortvalue_input(tensor.past, present)
        self.length += ids.shape[1]
        last: NDArray[np.float32] = logits.numpy()[:, -1].astype(np.float32)
        return last

    def _run(self, session: Any, binding: Any) -> None:
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # pybind11 classes without a common base
            raise BundleError(
                f"{self.session.bundle.directory}: ONNX Runtime failed: {one_line(error)}"
            ) from error
