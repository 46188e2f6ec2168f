"""Decoding with encoder-decoder models."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetie.bundle.names import ENCODER_MASK, SPEECH
from edgetie.errors import BundleError, EdgetieError
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.images.embeddings import ImageEmbeddings
from edgetie.runtime.session import Session, describe_tensors, onnxruntime_errors


class Seq2SeqDecoder(Decoder):
    """The decoder of an encoder-decoder model, whose encoder reads text or audio once.

    Lengths count the decoder's tokens, those it starts with included.

    Attributes:
        start: tokens that every continuation starts with.
    """

    _tasks = ("seq2seq-lm", SPEECH)

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
        """Encode token ids or audio features, padded on the right, and start continuations.

        Raises:
            EdgetieError: if the model reads features and gets tokens, or the other way round.
            BundleError: if ONNX Runtime fails on the model.
        """
        session = self.session
        first, *others = describe_tensors(session.encoder.get_inputs())
        dtype = np.dtype(first.dtype)
        if np.issubdtype(prompt.dtype, np.floating) != np.issubdtype(dtype, np.floating):
            raise EdgetieError(f"{session.bundle.directory}: reads {first.name} of another kind")
        encoding = session.encoder.io_binding()
        encoding.bind_cpu_input(first.name, np.ascontiguousarray(prompt, dtype))
        if others:
            mask = np.ones_like(prompt) if attention_mask is None else attention_mask
            self._encoder_mask = np.ascontiguousarray(mask, np.int64)  # the binding reads it
            encoding.bind_cpu_input(others[0].name, self._encoder_mask)
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
