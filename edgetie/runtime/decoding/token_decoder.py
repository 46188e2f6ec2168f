"""The contract that all decoders satisfy."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgetie.runtime.session import Session


class TokenDecoder(Protocol):
    """A batch of sequences that a model continues, token by token.

    Attributes:
        session: the opened model.
        batch: number of sequences.
        max_length: longest sequence there is room for.
        length: tokens of each sequence so far, padding included.
    """

    session: Session
    batch: int
    max_length: int
    length: int

    def reset(self) -> None:
        """Forget the sequences."""

    def prefill(
        self,
        prompt: NDArray[Any],
        attention_mask: NDArray[np.int64] | None = None,
        audio_embeddings: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Read a prompt for every sequence.

        Args:
            prompt: ``(batch, count)`` token ids, or audio features for a speech model.
            attention_mask: ``(batch, count)``, 0 for padding; ``None`` if there is none.
            audio_embeddings: for a language model with audio input, see
                :func:`edgetie.runtime.audio.embeddings.embed_audio`.

        Returns:
            Logits ``(batch, vocabulary)`` of the next token.

        Raises:
            EdgetieError: if the prompt is not one that the model accepts.
            BundleError: if ONNX Runtime fails on the model.
        """

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token, ``tokens[b]``, to every sequence; otherwise as :meth:`prefill`."""
