"""The steps from RGB pixels to what an encoder reads, as transformers computes them with Pillow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetie.errors import ImageError
from edgetie.runtime.images.processing.settings import ImageSettings

Pixels = NDArray[np.uint8]
"""An image in RGB, ``(height, width, 3)``."""
Size = tuple[int, int]
"""Height and width in pixels."""

_LEAST_DEVIATION = 1e-6
_MOST_PIXELS = 1 << 27  # of a resized image: many times what an encoder reads


@dataclass(frozen=True)
class ProcessedImage:
    """An image as an encoder reads it.

    Attributes:
        feeds: the encoder's inputs by name, for one run. All tiles of an image are in one run.
        rows, columns: of the tiles that it is split into, without the whole image in small; 0 if
            it is not split.
        text: what a prompt has in its place; empty if the prompt has nothing.
        tokens: number of image tokens in ``text``, which is that of the encoder's embeddings.
    """

    feeds: dict[str, NDArray[Any]]
    rows: int = 0
    columns: int = 0
    text: str = ""
    tokens: int = 0


def resize(pixels: Pixels, size: Size, settings: ImageSettings) -> Pixels:
    """Resize an image with the filter in the settings.

    Raises:
        ImageError: if its sides differ so much that one would have no pixels, or too many.
    """
    from PIL import Image

    height, width = size
    if min(size) < 1 or height * width > _MOST_PIXELS:
        raise ImageError(
            f"an image of {describe(pixels)} pixels becomes {width} x {height} for this model; "
            "crop it so that its sides differ less"
        )
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling(settings.resample()))
    return np.asarray(image)


def standard_size(size: Size, settings: ImageSettings) -> Size:
    """Compute the size to resize to by the sides that the setting ``size`` has."""
    is_square = settings.flag("default_to_square")
    sides = settings.size("size", integer=("height", "width") if is_square else ("shortest_edge",))
    height, width = size
    if {"shortest_edge", "longest_edge"} <= sides.keys():
        return _limited_size(size, sides["shortest_edge"], sides["longest_edge"])
    if "shortest_edge" in sides:
        return shortest_edge_size(size, sides["shortest_edge"])
    if {"max_height", "max_width"} <= sides.keys():
        scale = min(sides["max_height"] / height, sides["max_width"] / width)
        return int(height * scale), int(width * scale)
    return settings.height_width("size")


def shortest_edge_size(size: Size, edge: int) -> Size:
    """Compute the size whose shorter side is ``edge``."""
    height, width = size
    long = int(edge * max(size) / min(size))
    return (long, edge) if width <= height else (edge, long)


def _limited_size(size: Size, shortest: int, longest: int) -> Size:
    height, width = size
    short: float = shortest
    if max(size) / min(size) * shortest > longest:
        short = longest * min(size) / max(size)
        shortest = round(short)
    if shortest == min(size):
        return size
    if width < height:
        return int(short * height / width), shortest
    return shortest, int(short * width / height)


def center_crop(pixels: Pixels, size: Size) -> Pixels:
    """Cut out the middle; a smaller image gets a black border."""
    for axis, length in enumerate(size):
        missing = max(0, length - pixels.shape[axis])
        before = math.ceil(missing / 2)
        start = (pixels.shape[axis] - length) // 2 + before
        padding = [(0, 0)] * 3
        padding[axis] = (before, missing - before)
        pixels = np.pad(pixels, padding).take(range(start, start + length), axis)
    return pixels


def place(
    pixels: Pixels, size: Size, start: Size, background: NDArray[np.uint8] | int = 0
) -> Pixels:
    """Put an image on a larger canvas, its upper left corner at ``start``."""
    canvas = np.empty((*size, 3), np.uint8)
    canvas[:] = background
    top, left = start
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return canvas


def normalize(pixels: Pixels, settings: ImageSettings) -> NDArray[np.float32]:
    """Rescale and normalize as the settings say: ``(3, height, width)``."""
    image: NDArray[Any] = pixels
    if settings.flag("do_rescale"):
        image = pixels.astype(np.float64) * settings.number("rescale_factor")
    image = image.astype(np.float32)
    if settings.flag("do_normalize"):
        deviation = settings.channels("image_std", least=_LEAST_DEVIATION)
        image = (image - settings.channels("image_mean")) / deviation
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def size_of(pixels: Pixels) -> Size:
    """Return the height and the width."""
    return pixels.shape[0], pixels.shape[1]


def describe(pixels: Pixels) -> str:
    """Describe the size of an image, width first."""
    return f"{pixels.shape[1]} x {pixels.shape[0]}"
