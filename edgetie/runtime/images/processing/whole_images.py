"""Image processors that keep an image in one part."""

import math

import numpy as np

from edgetie.bundle.names import PIXEL_SIZES, PIXELS
from edgetie.errors import ImageError
from edgetie.runtime.images.processing.settings import ImageSettings
from edgetie.runtime.images.processing.steps import (
    Pixels,
    ProcessedImage,
    center_crop,
    describe,
    normalize,
    place,
    resize,
    shortest_edge_size,
    size_of,
    standard_size,
)


def resize_and_crop(pixels: Pixels, settings: ImageSettings) -> ProcessedImage:
    """Resize, crop the middle, rescale, normalize and pad, each if the settings say so."""
    if settings.flag("do_resize"):
        pixels = resize(pixels, standard_size(size_of(pixels), settings), settings)
    if settings.flag("do_center_crop"):
        pixels = center_crop(pixels, settings.height_width("crop_size"))
    image = normalize(pixels, settings)
    if settings.flag("do_pad") and "pad_size" in settings.values:
        size = settings.height_width("pad_size")
        _require_fit(pixels, size)
        sides = zip(size, image.shape[1:], strict=True)
        image = np.pad(image, [(0, 0), *((0, side - length) for side, length in sides)])
    return ProcessedImage({PIXELS: image[None]})


def pad_to_square(pixels: Pixels, settings: ImageSettings) -> ProcessedImage:
    """Put the image in the middle of a square of the mean colour, if the settings say so."""
    if settings.flag("do_pad"):
        height, width = size_of(pixels)
        side = max(height, width)
        colour = (settings.channels("image_mean").astype(np.float64) * 255).astype(np.uint8)
        start = ((side - height) // 2, (side - width) // 2)
        pixels = place(pixels, (side, side), start, colour)
    return resize_and_crop(pixels, settings.overridden_by({"do_pad": False}))


def fit_page(pixels: Pixels, settings: ImageSettings) -> ProcessedImage:
    """Fit a page into a size: rotate it if it lies across, shrink it, and put it in the middle."""
    height, width = settings.height_width("size", ("width", "height"))
    lies_across = (height - width) * (pixels.shape[0] - pixels.shape[1]) < 0
    if settings.flag("do_align_long_axis") and lies_across:
        pixels = np.rot90(pixels, 3)
    if settings.flag("do_resize"):
        edge = min(height, width)
        pixels = resize(pixels, shortest_edge_size(size_of(pixels), edge), settings)
    if settings.flag("do_thumbnail"):
        pixels = _shrink(pixels, (height, width), settings)
    if settings.flag("do_pad"):
        _require_fit(pixels, (height, width))
        start = ((height - pixels.shape[0]) // 2, (width - pixels.shape[1]) // 2)
        pixels = place(pixels, (height, width), start)
    if settings.flag("do_center_crop"):
        pixels = center_crop(pixels, settings.height_width("crop_size"))
    return ProcessedImage({PIXELS: normalize(pixels, settings)[None]})


def _shrink(pixels: Pixels, limits: tuple[int, int], settings: ImageSettings) -> Pixels:
    old_height, old_width = size_of(pixels)
    height, width = min(old_height, limits[0]), min(old_width, limits[1])
    if (height, width) == (old_height, old_width):
        return pixels
    if old_height > old_width:
        width = int(old_width * height / old_height)
    elif old_width > old_height:
        height = int(old_height * width / old_width)
    return resize(pixels, (height, width), settings)


def keep_aspect_ratio(pixels: Pixels, settings: ImageSettings) -> ProcessedImage:
    """Shrink the image below a size, to whole patches, and say what size it has."""
    rows, columns = settings.height_width("patch_size")
    if settings.flag("do_resize"):
        longest = settings.size("size").get("longest_edge")
        limits = (longest, longest) if longest else settings.height_width("size")
        height, width = size_of(pixels)
        ratio = max(height / limits[0], width / limits[1])
        if ratio > 1:
            height, width = math.floor(height / ratio), math.floor(width / ratio)
        size = (math.ceil(height / rows) * rows, math.ceil(width / columns) * columns)
        pixels = resize(pixels, size, settings)
    if settings.flag("do_center_crop"):
        pixels = center_crop(pixels, settings.height_width("crop_size"))
    sizes = np.array([size_of(pixels)], np.int64)
    return ProcessedImage({PIXELS: normalize(pixels, settings)[None], PIXEL_SIZES: sizes})


def _require_fit(pixels: Pixels, size: tuple[int, int]) -> None:
    if pixels.shape[0] > size[0] or pixels.shape[1] > size[1]:
        raise ImageError(
            f"an image of {describe(pixels)} pixels is larger than {size[1]} x {size[0]}, which "
            "this model reads; make it smaller"
        )
