"""Image embeddings: what an encoder makes of images, and their places in a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetie.bundle.manifest import Signature
from edgetie.bundle.names import (
    GRID,
    MASKED_SIZES,
    PATCH_MASK,
    PATCH_SIZES,
    PATCHES,
    PIXELS,
    POSITIONS,
)
from edgetie.errors import BundleError
from edgetie.runtime.images.positions import image_positions
from edgetie.runtime.session import Session, describe_tensors, onnxruntime_errors

_PATCHES_PER_SIDE = 12  # of a random image; encoders join squares of 2, 3 or 4
_PIXELS = 448  # height and width of one; a multiple of twice 14 and 16
_PROMPT_TOKENS = 6  # after it, random ones
_MASK = "attention_mask"


@dataclass(frozen=True)
class ImageEmbeddings:
    """Images as a decoder reads them.

    Attributes:
        rows: the decoder's inputs by name, ``(count, hidden_size)`` each.
        grids: patches of each image in time, height and width, ``(images, 3)``; empty if the
            encoder reads images of one size.
    """

    rows: Mapping[str, NDArray[np.float32]]
    grids: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Number of image tokens."""
        return len(next(iter(self.rows.values())))

    def positions(self, ids: NDArray[np.int64], image_token: int) -> NDArray[np.int64]:
        """Compute positions ``(3, count)`` of a prompt's tokens ``(count,)``.

        Raises:
            ValueError: if the prompt has another number of image tokens.
        """
        patches = int(self.grids.prod(axis=1).sum())
        merge = round((patches / max(1, self.count)) ** 0.5)
        return image_positions(ids, image_token, self.grids, merge)


def embed_images(session: Session, images: Sequence[Mapping[str, NDArray[Any]]]) -> ImageEmbeddings:
    """Run the encoder of a vision-language model, once for each of ``images``.

    Args:
        session: an opened ``image-text-to-text`` model.
        images: the encoder's inputs by name.

    Raises:
        BundleError: if the model has no encoder, or ONNX Runtime fails on it.
    """
    if session.encoder is None:
        raise BundleError(f"{session.bundle.directory}: has no encoder, so it reads no images")
    names = [output.name for output in session.encoder.get_outputs()]
    inputs = [value.name for value in session.encoder.get_inputs()]
    with onnxruntime_errors(session.bundle.directory):
        runs = [
            session.encoder.run(names, {name: feeds[name] for name in inputs if name in feeds})
            for feeds in images
        ]
    rows = {name: np.concatenate(parts) for name, *parts in zip(names, *runs, strict=True)}
    grids = [feeds[GRID] for feeds in images if GRID in feeds]
    return ImageEmbeddings(rows, np.concatenate(grids) if grids else np.zeros((0, 3), np.int64))


def prepend_images(
    ids: NDArray[np.int64], embeddings: ImageEmbeddings, token: int
) -> NDArray[np.int64]:
    """Put images before a prompt ``(1, count)``, which has no place for others."""
    text = np.where(ids == token, int(token == 0), ids)
    return np.concatenate([np.full((1, embeddings.count), token), text], axis=1)


def random_image(
    encoder: Any, signature: Signature, random: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Draw one image for the session of an encoder, and a prompt if it reads one.

    Args:
        encoder: the session.
        signature: of the decoder.
        random: generates the pixels.
    """
    inputs = {info.name: info for info in describe_tensors(encoder.get_inputs())}
    side = _PATCHES_PER_SIDE
    rows_columns = np.indices((side, side)).reshape(2, -1).T
    feeds: dict[str, NDArray[Any]] = {
        GRID: np.array([[1, side, side]]),
        PATCH_SIZES: np.array([[side, side]]),
        MASKED_SIZES: np.array([[side, side]]),
        POSITIONS: rows_columns[None, :, ::-1],
        PATCH_MASK: np.ones((1, side**2), np.int32),
    }
    feeds = {name: value for name, value in feeds.items() if name in inputs}
    dimensions = {"patches": side**2, "height": _PIXELS, "width": _PIXELS}
    for name, info in inputs.items():
        shape = [each if isinstance(each, int) else dimensions.get(each, 1) for each in info.shape]
        if name.endswith(PIXELS):
            if PATCH_SIZES in inputs:
                shape[-1] *= shape[-2]  # patches next to each other
            feeds[name] = random.standard_normal(shape, np.float32).astype(info.dtype)
        elif name == PATCHES:
            patches = random.standard_normal((1, side**2, shape[-1]), np.float32)
            patches[..., :2] = rows_columns + 1
            feeds |= {name: patches.astype(info.dtype), _MASK: np.ones(patches.shape[:2], np.int64)}
        elif name not in feeds and name != _MASK:
            feeds[name] = _random_prompt(signature, random)
            if _MASK in inputs:
                feeds[_MASK] = np.ones_like(feeds[name])
    return feeds


def _random_prompt(signature: Signature, random: np.random.Generator) -> NDArray[np.int64]:
    """Draw tokens ``(1, count)`` for an encoder, after those of an image if it has places."""
    token = signature.image_token_id
    text = random.integers(0, signature.vocab_size, _PROMPT_TOKENS)
    text[text == token] = 0
    return np.array([[*[token] * (signature.image_tokens or 0), *text]], np.int64)
