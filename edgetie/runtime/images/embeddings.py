"""Image embeddings: what an encoder makes of images, and their places in a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetie.bundle.manifest import Signature
from edgetie.bundle.names import GRID, PATCHES, PIXELS
from edgetie.errors import BundleError
from edgetie.runtime.images.positions import image_positions
from edgetie.runtime.session import Session, describe_tensors, onnxruntime_errors

_PATCHES_PER_SIDE = 8  # of a random image
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
    with onnxruntime_errors(session.bundle.directory):
        runs = [session.encoder.run(names, dict(feeds)) for feeds in images]
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
    images = inputs[PATCHES if PATCHES in inputs else PIXELS]
    has_patches = images.name == PATCHES or GRID in inputs
    sizes = [size if isinstance(size, int) else 1 for size in images.shape]
    if has_patches:
        sizes[-2 if images.name == PATCHES else 0] = side**2
    array = random.standard_normal(sizes, np.float32).astype(images.dtype)
    feeds: dict[str, NDArray[Any]] = {images.name: array}
    if images.name == PATCHES:
        array[..., :2] = np.indices((side, side)).reshape(2, -1).T + 1  # rows and columns
        feeds[_MASK] = np.ones(array.shape[:2], np.int64)
    elif GRID in inputs:
        feeds[GRID] = np.array([[1, side, side]])
    elif signature.image_tokens is not None:
        token = signature.image_token_id
        text = random.integers(0, signature.vocab_size, _PROMPT_TOKENS)
        text[text == token] = 0
        ids = np.array([[*[token] * signature.image_tokens, *text]], np.int64)
        feeds |= {"input_ids": ids, _MASK: np.ones_like(ids)}
    return feeds
