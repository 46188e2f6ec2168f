"""Decoding with encoder–decoder models: text or audio is encoded once, its keys and values stay
bound.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgetie.bundle.names import ENCODER_MASK
from edgetie.errors import BundleError, EdgetieError
from edgetie.runtime.memory import release_heap
from edgetie.runtime.session import Session, describe_tensors, onnxruntime_errors


class Seq2SeqDecoder:
    """The :class:`TokenDecoder` of an encoder–decoder model: prompts go to its encoder.

    Lengths count the decoder's tokens, those it starts with included.

    Attributes:
        start: tokens that every continuation starts with.
    """

    def __init__(self, session: Session, batch: int, max_length: int) -> None:
        """Refuse a bundle that does not tell what its decoder starts with."""
        start = session.bundle.manifest.signature.start_token_ids
        if session.encoder is None or not start:
            raise BundleError(
                f"{session.bundle.directory}: does not state which token its decoder starts with; "
                "set decoder_start_token_id in the model's configuration and export it again"
            )
        self.session, self.batch, self.max_length, self.length = session, batch, max_length, 0
        self.start = list(start)
        self._binding = session.ort.io_binding()
        self._buffers: list[Any] = []  # what the binding reads must live as long as it does

    def reset(self) -> None:
        """Forget the sequences."""
        self.length = 0

    def prefill(
        self,
        prompt: NDArray[Any],
        attention_mask: NDArray[np.int64] | None = None,
        audio_embeddings: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Encode prompts, padded on the right, and start their continuations.

        Raises:
            EdgetieError: if the model reads features and gets tokens, or the other way round.
            BundleError: if ONNX Runtime fails on the model.
        """
        session = self.session
        assert session.encoder is not None
        first, *others = describe_tensors(session.encoder.get_inputs())
        dtype = np.dtype(first.dtype)
        if np.issubdtype(prompt.dtype, np.floating) != np.issubdtype(dtype, np.floating):
            raise EdgetieError(f"{session.bundle.directory}: reads {first.name} of another kind")
        encoding = session.encoder.io_binding()
        encoding.bind_cpu_input(first.name, np.ascontiguousarray(prompt, dtype))
        masks: list[NDArray[np.int64]] = []
        if others:
            mask = np.ones_like(prompt) if attention_mask is None else attention_mask
            masks.append(np.ascontiguousarray(mask, np.int64))
            encoding.bind_cpu_input(others[0].name, masks[0])
        for tensor in session.cross:
            encoding.bind_output(tensor.present, session.device)
        with onnxruntime_errors(session.bundle.directory):
            session.encoder.run_with_iobinding(encoding)
        encoded = encoding.get_outputs()
        self._buffers = [*masks, *encoded]
        self._binding.clear_binding_inputs()
        for mask in masks:
            self._binding.bind_cpu_input(ENCODER_MASK, mask)
        for tensor, value in zip(session.cross, encoded, strict=True):
            self._binding.bind_ortvalue_input(tensor.past, value)
        return self.restart()

    def restart(self) -> NDArray[np.float32]:
        """Start the continuations of the encoded prompts anew, with the tokens of ``start``."""
        session = self.session
        for tensor in session.cache:
            empty = ort.OrtValue.ortvalue_from_shape_and_type(
                tensor.shape(self.batch), np.dtype(session.cache_dtype), session.device, 0
            )
            self._binding.bind_ortvalue_input(tensor.past, empty)
        self.length = 0
        return self._forward(np.tile(np.array(self.start, np.int64), (self.batch, 1)))

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token, ``tokens[b]``, to every continuation."""
        if self.length == len(self.start):
            if self.session.embedding_files is not None:
                self.session.embedding_files.release()
            release_heap()
        return self._forward(np.ascontiguousarray(tokens[:, None]))

    def _forward(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        if self.length + ids.shape[1] > self.max_length:
            raise EdgetieError(f"more than max_length {self.max_length} tokens")
        self._binding.bind_cpu_input("input_ids", ids)
        self._binding.bind_output("logits", "cpu")
        for tensor in self.session.cache:
            self._binding.bind_output(tensor.present, self.session.device)
        with onnxruntime_errors(self.session.bundle.directory):
            self.session.ort.run_with_iobinding(self._binding)
        logits, *presents = self._binding.get_outputs()
        for tensor, present in zip(self.session.cache, presents, strict=True):
            self._binding.bind_ortvalue_input(tensor.past, present)
        self.length += ids.shape[1]
        last: NDArray[np.float32] = logits.numpy()[:, -1].astype(np.float32)
        return last
