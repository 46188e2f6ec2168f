"""Image processors that split an image into tiles, and add the whole image in small."""

import math

import numpy as np

from edgetie.bundle.names import PATCH_MASK, PIXELS
from edgetie.runtime.images.processing.settings import ImageSettings
from edgetie.runtime.images.processing.steps import (
    Pixels,
    ProcessedImage,
    Size,
    normalize,
    resize,
    size_of,
)

LONGEST = 4096
"""Pixels of a side before an image is split, at most."""


def split_rows(pixels: Pixels, settings: ImageSettings) -> ProcessedImage:
    """Enlarge the image to a multiple of the tile's side, and split it if that is more than one.

    The encoder reads ``(1, tiles, 3, side, side)``, and a mask of pixels that are not padding.
    """
    side = max(settings.size("max_image_size").values())
    if settings.flag("do_resize"):
        pixels = resize(pixels, _longest_edge_size(size_of(pixels), settings), settings)
    rows = columns = 0
    if settings.flag("do_image_splitting"):
        pixels = resize(pixels, _multiple_of(side, size_of(pixels)), settings)
        rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    if rows * columns > 1:
        tiles = [*_cut(pixels, rows, columns), resize(pixels, (side, side), settings)]
    else:
        rows = columns = 0
        tiles = [resize(pixels, (side, side), settings)]
    images = np.stack([normalize(tile, settings) for tile in tiles])[None]
    feeds = {PIXELS: images}
    if settings.flag("do_pad"):
        feeds[PATCH_MASK] = np.ones((1, len(tiles), side, side), np.int64)
    return ProcessedImage(feeds, rows, columns)


def best_tiling(pixels: Pixels, settings: ImageSettings) -> ProcessedImage:
    """Split the image into tiles whose rows and columns fit its aspect ratio best.

    The encoder reads ``(tiles, 3, height, width)``.
    """
    size, most = settings.height_width("size"), settings.count("max_patches")
    if not settings.flag("crop_to_patches") or most == 1:
        tile = resize(pixels, size, settings) if settings.flag("do_resize") else pixels
        return ProcessedImage({PIXELS: normalize(tile, settings)[None]})
    rows, columns = _best_arrangement(size_of(pixels), size, settings.count("min_patches"), most)
    whole = resize(pixels, (size[0] * rows, size[1] * columns), settings)
    tiles = _cut(whole, rows, columns)
    if len(tiles) > 1:
        tiles.append(resize(pixels, size, settings))
    else:
        rows = columns = 0
    images = np.stack([normalize(tile, settings) for tile in tiles])
    return ProcessedImage({PIXELS: images}, rows, columns)


def _cut(pixels: Pixels, rows: int, columns: int) -> list[Pixels]:
    """Cut an image into tiles of one size, row by row."""
    return [
        tile for row in np.split(pixels, rows, axis=0) for tile in np.split(row, columns, axis=1)
    ]


def _longest_edge_size(size: Size, settings: ImageSettings) -> Size:
    """Scale the longer side to a length, and the other one to an even number."""
    sides = settings.size("size")
    if "longest_edge" not in sides:
        return settings.height_width("size")
    height, width = _scale(size, sides["longest_edge"])
    if width >= height:
        height += height % 2
    else:
        width += width % 2
    if max(height, width) > LONGEST:
        height, width = _scale((height, width), LONGEST)
    return max(1, height), max(1, width)


def _scale(size: Size, longest: int) -> Size:
    height, width = size
    ratio = width / height
    if width >= height:
        return int(longest / ratio), longest
    return longest, int(longest * ratio)


def _multiple_of(side: int, size: Size) -> Size:
    """Scale up to multiples of ``side``, the longer side first."""
    height, width = size
    ratio = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        return math.ceil(int(width / ratio) / side) * side, width
    height = math.ceil(height / side) * side
    return height, math.ceil(int(height * ratio) / side) * side


def _best_arrangement(size: Size, tile: Size, least: int, most: int) -> tuple[int, int]:
    """Return the rows and columns of tiles.

    Of several with the same ratio the one of more tiles is best, up to twice the image's pixels.
    """
    ratio, area = size[1] / size[0], size[0] * size[1]
    counts = range(1, most + 1)
    pairs = [(rows, columns) for columns in counts for rows in counts]
    allowed = [each for each in pairs if least <= math.prod(each) <= most]
    best, smallest = (1, 1), math.inf
    for rows, columns in sorted(allowed, key=math.prod):
        difference = abs(ratio - columns / rows)
        is_large = area > 0.5 * tile[0] * tile[1] * rows * columns
        if difference < smallest or (difference == smallest and is_large):
            best, smallest = (rows, columns), difference
    return best
