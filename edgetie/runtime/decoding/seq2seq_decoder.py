"""Decoding with encoder-decoder models."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetie.bundle.names import ENCODER_MASK, IMAGE_TO_TEXT, SPEECH
from edgetie.errors import BundleError, EdgetieError
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.images.embeddings import ImageEmbeddings
from edgetie.runtime.session import Session, describe_tensors, onnxruntime_errors

_MASK = "attention_mask"


class Seq2SeqDecoder(Decoder):
    """The decoder of an encoder-decoder model, whose encoder reads text, audio or images once.

    Lengths count the decoder's tokens, those it starts with included.

    Attributes:
        start: tokens that every continuation starts with.
    """

    _tasks = ("seq2seq-lm", SPEECH, IMAGE_TO_TEXT)

    def __init__(self, session: Session, batch: int, max_length: int) -> None:
        """Refuse a bundle that does not tell what its decoder starts with."""
        self.start = list(session.bundle.manifest.signature.start_token_ids)
        if session.encoder is None or not self.start:
            raise BundleError(
                f"{session.bundle.directory}: does not state which token its decoder starts with; "
                "set decoder_start_token_id in the model's configuration and export it again"
            )
        super().__init__(session, batch, max_length)

    def prefill(
        self,
        prompt: NDArray[Any],
        attention_mask: NDArray[np.int64] | None = None,
        audio_embeddings: NDArray[np.float32] | None = None,
        image_embeddings: ImageEmbeddings | None = None,
    ) -> NDArray[np.float32]:
        """Encode token ids, audio features or images, padded on the right, and start continuations.

        Raises:
            EdgetieError: if the model reads features and gets tokens, or the other way round.
            BundleError: if ONNX Runtime fails on the model.
        """
        session = self.session
        first, *others = describe_tensors(session.encoder.get_inputs())
        dtype = np.dtype(first.dtype)
        if np.issubdtype(prompt.dtype, np.floating) != np.issubdtype(dtype, np.floating):
            raise EdgetieError(f"{session.bundle.directory}: reads {first.name} of another kind")
        feeds = {first.name: prompt}
        if others:
            full = np.ones(prompt.shape[:2], np.int64)
            feeds[others[0].name] = full if attention_mask is None else attention_mask
        return self.encode(feeds)

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Encode ``inputs`` of the encoder, ``(batch, ...)`` each, and start continuations.

        Raises:
            EdgetieError: if one is missing.
            BundleError: if ONNX Runtime fails on the model.
        """
        session = self.session
        dtypes = {info.name: info.dtype for info in describe_tensors(session.encoder.get_inputs())}
        if missing := [name for name in dtypes if name not in inputs]:
            raise EdgetieError(
                f"{session.bundle.directory}: its encoder reads {missing[0]} as well; add it"
            )
        arrays = {name: np.ascontiguousarray(inputs[name], dtypes[name]) for name in dtypes}
        encoding = session.encoder.io_binding()
        for name, array in arrays.items():
            encoding.bind_cpu_input(name, array)
        if _MASK in arrays:
            self._encoder_mask = arrays[_MASK]  # the binding reads it
            self._binding.bind_cpu_input(ENCODER_MASK, self._encoder_mask)
        for tensor in session.cross:
            encoding.bind_output(tensor.present, session.device)
        with onnxruntime_errors(session.bundle.directory):
            session.encoder.run_with_iobinding(encoding)
        for tensor, value in zip(session.cross, encoding.get_outputs(), strict=True):
            self._binding.bind_ortvalue_input(tensor.past, value)
        return self.restart()

    def restart(self) -> NDArray[np.float32]:
        """Start the continuations of the encoded prompts anew, with the tokens of ``start``."""
        self.reset()
        self._steps = 0
        return self._forward(np.tile(np.array(self.start, np.int64), (self.batch, 1)), 1, None)
