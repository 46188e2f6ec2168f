"""Sound for language models: what an encoder makes of it, and where prompts hold places for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgetie.errors import BundleError, EdgetieError, summarize
from edgetie.runtime.session import Session

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_LENGTHS = (192, 200), (8000,)  # of frames, and of samples, where an encoder takes several


def embed_audio(session: Session, features: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Run the encoder of a language model that hears.

    Args:
        session: an opened ``audio-lm`` model.
        features: the encoder's inputs by name, ``(clips, ...)`` each.

    Returns:
        Rows ``(rows, hidden_size)`` that take the places of tokens, or
        ``(clips, tokens, hidden_size)`` where one is added to each token.

    Raises:
        BundleError: if the model hears nothing, or ONNX Runtime fails on it.
    """
    if session.encoder is None:
        raise BundleError(f"{session.bundle.directory}: has no encoder, so it hears nothing")
    try:
        rows: NDArray[np.float32] = session.encoder.run(None, features)[0]
    except Exception as error:  # pybind11 classes without a common base
        raise BundleError(
            f"{session.bundle.directory}: ONNX Runtime failed: {summarize(error)}"
        ) from error
    return rows


def make_room(ids: list[int], token: int, rows: int) -> list[int]:
    """A prompt whose one ``token`` stands as often as there are rows to take its places.

    Raises:
        EdgetieError: if it does not occur just once.
    """
    if ids.count(token) != 1:
        raise EdgetieError(
            f"the prompt holds token {token}, which stands for a sound, {ids.count(token)} times "
            "instead of once"
        )
    at = ids.index(token)
    return [*ids[:at], *[token] * rows, *ids[at + 1 :]]


def with_audio_tokens(
    ids: NDArray[np.int64], rows: NDArray[np.float32], token: int | None, length: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """A prompt with a sound in front of it.

    Args:
        ids: ``(1, count)``.
        rows: as :func:`embed_audio` returns them.
        token: the one whose places rows take; ``None`` where one is added to each token.
        length: tokens to read in all, the prompt's and later ones; a sound that is added to each is
            repeated up to there.

    Returns:
        The prompt, and the rows that belong to it.
    """
    if token is None:
        return ids, np.ascontiguousarray(rows[:, np.arange(length) % rows.shape[1]])
    words = np.where(ids == token, int(token == 0), ids)  # no place for another sound
    return np.concatenate([np.full((1, len(rows)), token), words], axis=1), rows


def noise(encoder: Any, random: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Random features ``(1, ...)`` of a length that an encoder takes, and what else it reads.

    Args:
        encoder: its session in ONNX Runtime.
        random: where the numbers come from.

    Raises:
        BundleError: if it takes none of the lengths tried.
    """
    first, *others = encoder.get_inputs()
    options = ort.RunOptions()
    options.log_severity_level = 4  # a length that it does not take is no error to log
    why: Exception | None = None
    for length in _LENGTHS[first.name == "input_values"]:
        sizes = [size if isinstance(size, int) else length for size in first.shape[1:]]
        clip = random.standard_normal((1, *sizes), np.float32).astype(_DTYPES[first.type])
        feeds: dict[str, NDArray[Any]] = {first.name: clip}
        for mask in others:
            frames = mask.shape[1] if isinstance(mask.shape[1], int) else length
            feeds[mask.name] = np.ones((1, frames), np.int64)
        try:
            encoder.run(None, feeds, options)
        except Exception as error:  # pybind11 classes without a common base
            why = error
        else:
            return feeds
    raise BundleError(f"no length of {first.name} is known that the encoder takes") from why
