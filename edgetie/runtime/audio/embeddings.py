"""Audio embeddings: what an encoder makes of audio, and their places in a prompt."""

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgetie.errors import BundleError
from edgetie.runtime.session import Session, describe_tensors, onnxruntime_errors

_FRAMES, _SAMPLES = (192, 200), (8000,)  # lengths to try if an encoder accepts several


def reads_audio(session: Session) -> bool:
    """Whether the model has an encoder, and the encoder reads audio."""
    return session.encoder is not None and session.encoder.get_inputs()[0].name != "input_ids"


def embed_audio(session: Session, features: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Run the encoder of a language model with audio input.

    Args:
        session: an opened ``audio-lm`` model.
        features: the encoder's inputs by name, ``(batch, ...)`` each.

    Returns:
        Embeddings ``(count, hidden_size)`` that replace those of audio tokens, or
        ``(batch, tokens, hidden_size)`` to add one to each token.

    Raises:
        BundleError: if the model has no encoder, or ONNX Runtime fails on it.
    """
    if session.encoder is None:
        raise BundleError(f"{session.bundle.directory}: has no encoder, so it reads no audio")
    with onnxruntime_errors(session.bundle.directory):
        embeddings: NDArray[np.float32] = session.encoder.run(None, features)[0]
    return embeddings


def prepend_audio(
    ids: NDArray[np.int64], embeddings: NDArray[np.float32], token: int | None, length: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Put audio before a prompt ``(1, count)``; returns the prompt and its audio embeddings.

    Args:
        ids: of the prompt.
        embeddings: as :func:`embed_audio` returns them.
        token: the audio token; ``None`` if an embedding is added to each token.
        length: tokens to add embeddings to, later ones included; they are repeated up to there.
    """
    if token is None:
        return ids, np.ascontiguousarray(embeddings[:, np.arange(length) % embeddings.shape[1]])
    text = np.where(ids == token, int(token == 0), ids)  # no place for other audio
    return np.concatenate([np.full((1, len(embeddings)), token), text], axis=1), embeddings


def random_features(encoder: Any, random: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Draw features ``(1, ...)`` for the session of an encoder, and make its masks.

    Raises:
        BundleError: if the encoder accepts none of the lengths tried.
    """
    first, *masks = describe_tensors(encoder.get_inputs())
    options = ort.RunOptions()
    options.log_severity_level = 4  # a length that it refuses is not an error to log
    failure: Exception | None = None
    for length in _SAMPLES if first.name == "input_values" else _FRAMES:
        sizes = [size if isinstance(size, int) else length for size in first.shape[1:]]
        features = random.standard_normal((1, *sizes), np.float32).astype(first.dtype)
        feeds: dict[str, NDArray[Any]] = {first.name: features}
        for mask in masks:
            frames = mask.shape[1] if isinstance(mask.shape[1], int) else length
            feeds[mask.name] = np.ones((1, frames), np.int64)
        try:
            encoder.run(None, feeds, options)
            return feeds
        except Exception as error:  # pybind11 classes without a common base
            failure = error
    raise BundleError(f"the encoder accepts no known length of {first.name}") from failure
