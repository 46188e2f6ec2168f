"""Images to measure or calibrate a model on: files, drawn ones, or random pixels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetie.bundle.bundle import Bundle
from edgetie.errors import BundleError, ImageError
from edgetie.runtime.images.embeddings import random_image
from edgetie.runtime.images.processor import ImageProcessor
from edgetie.runtime.images.reading import ImageSource, image_files, require_pillow

logger = logging.getLogger(__name__)

_SEED = 20240229
_PROMPT = ("input_ids", "attention_mask")
_COUNT = 4
_MOST_FILES = 8
_SIDES = (192, 256, 320)  # heights and widths of drawn images
_SEGMENTS = (  # of digits
    "abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg",
)  # fmt: skip
_PLACES = {  # of a segment in a digit: top, left, bottom, right, in tenths
    "a": (0, 0, 1, 5), "b": (0, 4, 5, 5), "c": (5, 4, 10, 5), "d": (9, 0, 10, 5),
    "e": (5, 0, 10, 1), "f": (0, 0, 5, 1), "g": (4, 0, 6, 5),
}  # fmt: skip


class SampleImages:
    """A few images as an encoder reads them.

    Attributes:
        description: of the images.
    """

    def __init__(self, bundle: Bundle, encoder: Any, source: Path | None = None) -> None:
        """Find the images.

        Args:
            bundle: of a model that reads images.
            encoder: the session of its encoder.
            source: an image file, or a directory of them, of which the first eight are used. By
                default images are drawn, or their pixels are random if the model's image
                processor is not known.

        Raises:
            ImageError: if Pillow is not installed, or there is no such file.
            BundleError: if ``source`` is given, and the model's image processor is not known.
        """
        require_pillow()
        self._encoder, self._signature = encoder, bundle.manifest.signature
        self._images: Sequence[ImageSource] = []
        self._process: ImageProcessor | None = None
        if source is not None:
            self._process = _open_processor(bundle)
            self._images = image_files(source)[:_MOST_FILES]
            count = f"{len(self._images)} images of " if source.is_dir() else ""
            self.description = f"{count}{source}"
            return
        random = np.random.default_rng(_SEED)
        drawn = [draw_image(random) for _ in range(_COUNT)]
        try:
            process = _open_processor(bundle)
            process(drawn[0])
            self._process, self._images = process, drawn
            self.description = f"{_COUNT} drawn images"
        except (BundleError, ImageError):
            logger.debug("%s: no image processor", bundle.directory, exc_info=True)
            self.description = f"{_COUNT} images of random pixels"

    def __len__(self) -> int:
        return len(self._images) or _COUNT

    def feeds(self, index: int) -> dict[str, NDArray[Any]]:
        """Compute the encoder's inputs for an image, and for a prompt if it reads one.

        Raises:
            ImageError, BundleError: as :class:`ImageProcessor` does.
        """
        index %= len(self)
        random = np.random.default_rng([_SEED, index])
        feeds = random_image(self._encoder, self._signature, random)
        if self._process is not None:
            feeds |= self._process(self._images[index]).feeds
        return feeds


def _open_processor(bundle: Bundle) -> ImageProcessor:
    """Open a bundle's image processor; a prompt that the encoder reads is not its output."""
    process = ImageProcessor.from_bundle(bundle)
    images = tuple(info for info in process.inputs if info.name not in _PROMPT)
    return replace(process, inputs=images)


def draw_image(random: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a gradient with discs, rectangles, stripes, a number and noise: ``(h, w, 3)``."""
    height, width = random.choice(_SIDES, 2)
    y, x = np.mgrid[:height, :width] / max(height, width)
    corners = random.uniform(0, 255, (3, 3))
    pixels = corners[0] + x[..., None] * corners[1] / 2 - y[..., None] * corners[2] / 2
    for _ in range(random.integers(2, 6)):
        top, left = random.uniform(0, 0.7, 2)
        size = random.uniform(0.1, 0.3)
        down, right = (y - top) / size, (x - left) / size
        is_inside = (np.minimum(down, right) >= 0) & (np.maximum(down, right) < 1)
        kind = random.integers(3)
        if kind == 0:
            is_inside = np.hypot(down - 0.5, right - 0.5) < 0.5
        elif kind == 1:
            is_inside &= (down + right) * random.integers(3, 9) % 1 < 0.5
        pixels[is_inside] = random.uniform(0, 255, 3)
    scale = int(random.integers(4, 9))
    top, left = (int(random.integers(0, side - 16 * scale)) for side in (height, width))
    for place, digit in enumerate(random.integers(0, 10, 2)):
        for segment in _SEGMENTS[digit]:
            edges = scale * np.array(_PLACES[segment]) + [top, left + 7 * scale * place] * 2
            pixels[edges[0] : edges[2], edges[1] : edges[3]] = corners.mean() < 128 and 255
    pixels += random.normal(0, 6, pixels.shape)
    return np.asarray(pixels.clip(0, 255), np.uint8)
