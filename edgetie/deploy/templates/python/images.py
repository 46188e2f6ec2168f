"""Read images, and compute what the model reads of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from session import open_session

GRID = "image_grid_thw"


class ImageError(ValueError):
    """An image that cannot be read, or does not suit the model."""


@dataclass(frozen=True, eq=False)
class Image:
    """An image as the model reads it.

    Attributes:
        feeds: inputs of the decoder by name: embeddings ``(tokens, size)``, or keys and values.
        grid: number of patches in time, height and width; ``None`` if all images have one size.
    """

    feeds: dict[str, np.ndarray]
    grid: np.ndarray | None

    @property
    def tokens(self) -> int:
        """Number of image tokens in a prompt."""
        return len(next(iter(self.feeds.values())))


class ImageReader:
    """The image processor and the encoder, opened once."""

    def __init__(self, folder: Path, app: dict[str, Any]) -> None:
        self.settings = app["images"]
        self.processor = ort.InferenceSession(
            str(folder / self.settings["processor"]), providers=["CPUExecutionProvider"]
        )
        self.encoder, _ = open_session(folder, app, self.settings["encoder"])

    def __call__(self, source: str | os.PathLike[str]) -> Image:
        """Read an image file.

        Raises:
            ImageError: if it is not an image, or the model does not read one of its size.
        """
        pixels = read_pixels(source)
        names = self.settings["inputs"]
        try:
            inputs = dict(zip(names, self.processor.run(names, {"image": pixels}), strict=True))
            outputs = self.encoder.run(self.settings["outputs"], inputs)
        except Exception as error:  # onnxruntime's classes have no common base
            height, width = pixels.shape[:2]
            raise ImageError(
                f"{source}: the model does not read an image of {width} x {height} pixels "
                f"({str(error).splitlines()[0]})"
            ) from error
        return Image(dict(zip(self.settings["feeds"], outputs, strict=True)), inputs.get(GRID))


def read_pixels(source: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as RGB, ``(height, width, 3)``, rotated as its metadata says.

    Transparent pixels are blended with white. Of 16 bits the upper 8 are kept.
    """
    import PIL.Image
    import PIL.ImageOps

    try:
        with PIL.Image.open(source) as file:
            image = PIL.ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):
                image = PIL.Image.fromarray((np.array(image) >> 8).astype(np.uint8))
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                white = PIL.Image.new("RGBA", image.size, "white")
                image = PIL.Image.alpha_composite(white, image)
            return np.array(image.convert("RGB"))
    except Exception as error:  # decoders raise whatever damaged bytes lead to
        reason = getattr(error, "strerror", None) or "not an image, or damaged"
        raise ImageError(f"{os.fspath(source)}: cannot be read ({reason})") from error


def image_positions(ids: Sequence[int], token: int, images: Sequence[Image]) -> np.ndarray:
    """Compute positions in time, height and width, ``(3, tokens)`` (Qwen2-VL).

    The tokens of an image have its time, and the row and column of their patch, counted from the
    position after the text before. The text after it goes on after the largest of these.
    """
    parts, start = [], 0
    remaining = iter(images)
    for is_image, run in groupby(ids, lambda each: each == token):
        count = len(list(run))
        text = [np.tile(np.arange(count), (3, 1))]
        for part in patch_positions(count, remaining) if is_image else text:
            parts.append(part + start)
            start = int(parts[-1].max()) + 1
    return np.concatenate(parts, axis=1)


def patch_positions(count: int, images: Iterator[Image]) -> Iterator[np.ndarray]:
    """Yield the positions in images that follow each other and have ``count`` tokens."""
    while count > 0:
        image = next(images)
        assert image.grid is not None
        time, height, width = image.grid[0]
        merge = round((time * height * width / image.tokens) ** 0.5)
        yield np.indices((time, height // merge, width // merge)).reshape(3, -1)
        count -= image.tokens
