"""Image processors that cut an image into patches, each a row of numbers."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetie.bundle.names import GRID, MASKED_SIZES, PATCH_MASK, PIXELS, POSITIONS
from edgetie.errors import ImageError
from edgetie.runtime.images.processing.settings import ImageSettings
from edgetie.runtime.images.processing.steps import (
    Pixels,
    ProcessedImage,
    Size,
    describe,
    normalize,
    resize,
    size_of,
)

_MOST_UNEQUAL = 200  # the longer side of an image divided by the shorter one
_PRECISION = 1e-5  # of the factor by which an image is resized
_LARGEST = 100.0  # such factor


def merged_patches(pixels: Pixels, settings: ImageSettings) -> ProcessedImage:
    """Cut an image into patches; those that are merged to one token follow each other.

    The encoder reads ``(patches, channels * times * side * side)`` and the number of patches in
    time, height and width, ``(1, 3)``. An image is repeated in time.
    """
    if settings.flag("do_resize"):
        pixels = resize(pixels, _pixel_limited_size(size_of(pixels), settings), settings)
    return _merge_patches(pixels, settings)


def repeated_patches(pixels: Pixels, settings: ImageSettings) -> ProcessedImage:
    """Cut an image into patches like :func:`merged_patches`; limits count repeated pixels too.

    An image smaller than the patches of one token is enlarged to them first.
    """
    if settings.flag("do_resize"):
        height, width = size_of(pixels)
        scale = max(1, token_side(settings) / min(height, width))
        size = int(height * scale), int(width * scale)
        times = settings.count("temporal_patch_size")
        pixels = resize(pixels, _pixel_limited_size(size, settings, times), settings)
    return _merge_patches(pixels, settings)


def token_side(settings: ImageSettings) -> int:
    """Pixels of a side of the square that one token stands for."""
    return settings.count("patch_size") * settings.count("merge_size")


def _merge_patches(pixels: Pixels, settings: ImageSettings) -> ProcessedImage:
    side, merge = settings.count("patch_size"), settings.count("merge_size")
    _require_multiple(pixels, side * merge)
    image = normalize(pixels, settings)
    rows, columns = image.shape[1] // side, image.shape[2] // side
    parts = image.reshape(3, rows // merge, merge, side, columns // merge, merge, side)
    parts = parts.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
    parts = np.repeat(parts, settings.count("temporal_patch_size"), axis=5)
    counts = np.array([[1, rows, columns]], np.int64)
    return ProcessedImage({PIXELS: parts.reshape(rows * columns, -1), GRID: counts})


def _pixel_limited_size(size: Size, settings: ImageSettings, times: int = 1) -> Size:
    """Round both sides to whole tokens, so that the number of pixels is between two limits."""
    multiple = token_side(settings)
    least, most = pixel_limits(settings)
    height, width = size
    if max(height, width) > _MOST_UNEQUAL * min(height, width):
        raise ImageError(
            f"an image of {width} x {height} pixels: one side is more than {_MOST_UNEQUAL} times "
            "the other; crop it"
        )
    new_height, new_width = (round(side / multiple) * multiple for side in (height, width))
    if times * new_height * new_width > most:
        factor = math.sqrt(times * height * width / most)
        return (
            max(multiple, math.floor(height / factor / multiple) * multiple),
            max(multiple, math.floor(width / factor / multiple) * multiple),
        )
    if times * new_height * new_width < least:
        factor = math.sqrt(least / (times * height * width))
        return (
            math.ceil(height * factor / multiple) * multiple,
            math.ceil(width * factor / multiple) * multiple,
        )
    return new_height, new_width


def pixel_limits(settings: ImageSettings) -> tuple[int, int]:
    """Read the smallest and the largest number of pixels of an image, which its size may have."""
    sides = settings.size("size")
    limits = settings.defaulting_to(
        {
            "min_pixels": sides.get("min_pixels", sides.get("shortest_edge")),
            "max_pixels": sides.get("max_pixels", sides.get("longest_edge")),
        }
    )
    return limits.count("min_pixels"), limits.count("max_pixels")


def masked_patches(pixels: Pixels, settings: ImageSettings) -> ProcessedImage:
    """Cut an image into as many patches as allowed, and pad them to that number.

    The encoder reads ``(1, patches, side * side * channels)``, a mask ``(1, patches)``, which is 0
    for padding, and the number of patches in height and width, ``(1, 2)``.
    """
    side, most = settings.count("patch_size"), settings.count("max_num_patches")
    if settings.flag("do_resize"):
        pixels = resize(pixels, _patch_limited_size(size_of(pixels), side, most), settings)
    _require_multiple(pixels, side)
    patches = _cut(normalize(pixels, settings), side)
    shape = np.array([[pixels.shape[0] // side, pixels.shape[1] // side]], np.int64)
    mask = (np.arange(most) < len(patches)).astype(np.int32)
    return ProcessedImage(
        {
            PIXELS: _pad(patches, most)[None],
            PATCH_MASK: mask[None],
            MASKED_SIZES: shape,
        }
    )


def _patch_limited_size(size: Size, side: int, most: int) -> Size:
    """Search for the largest size with at most so many patches."""

    def scaled(factor: float) -> Size:
        height, width = (max(1, math.ceil(length * factor / side)) * side for length in size)
        return height, width

    low, high = _PRECISION / 10, _LARGEST
    while high - low >= _PRECISION:
        middle = (low + high) / 2
        height, width = scaled(middle)
        if height // side * (width // side) <= most:
            low = middle
        else:
            high = middle
    return scaled(low)


def placed_patches(pixels: Pixels, settings: ImageSettings) -> ProcessedImage:
    """Cut an image into patches of which squares are pooled to one token, and pad them.

    The encoder reads ``(1, patches, side * side * channels)`` and the column and row of each,
    ``(1, patches, 2)``, which are -1 for padding.
    """
    side, pool = settings.count("patch_size"), settings.count("pooling_kernel_size")
    most = settings.count("max_soft_tokens") * pool**2
    if settings.flag("do_resize"):
        pixels = resize(pixels, _pooled_size(pixels, side, pool, most), settings)
    _require_multiple(pixels, side * pool)
    patches = _cut(normalize(pixels, settings), side)
    rows, columns = np.indices((pixels.shape[0] // side, pixels.shape[1] // side))
    places = np.stack([columns.ravel(), rows.ravel()], axis=-1).astype(np.int64)
    return ProcessedImage(
        {
            PIXELS: _pad(patches, most)[None],
            POSITIONS: _pad(places, most, -1)[None],
        }
    )


def _pooled_size(pixels: Pixels, side: int, pool: int, most: int) -> Size:
    """Scale to at most so many patches, in whole squares that are pooled."""
    height, width = size_of(pixels)
    factor = math.sqrt(most * side**2 / (height * width))
    square = side * pool
    rows, columns = int(factor * height / square), int(factor * width / square)
    longest = most // pool**2
    if not rows:
        rows, columns = 1, min(width // height, longest)
    elif not columns:
        rows, columns = min(height // width, longest), 1
    return rows * square, columns * square


def _cut(image: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Cut ``(channels, height, width)`` into patches ``(count, side * side * channels)``."""
    channels, height, width = image.shape
    parts = image.reshape(channels, height // side, side, width // side, side)
    return parts.transpose(1, 3, 2, 4, 0).reshape(-1, side * side * channels)


def _pad(rows: NDArray[Any], count: int, value: int = 0) -> NDArray[Any]:
    """Add rows up to a number."""
    return np.pad(rows, [(0, count - len(rows)), (0, 0)], constant_values=value)


def _require_multiple(pixels: Pixels, multiple: int) -> None:
    if pixels.shape[0] % multiple or pixels.shape[1] % multiple:
        raise ImageError(
            f"an image of {describe(pixels)} pixels, whose sides this model reads in multiples of "
            f"{multiple}; resize it"
        )
