"""Drawn images, settings of image processors, and transformers' results for both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL import Image

from edgetie.runtime.images.processor import ImageProcessor

SIZES = ((64, 64), (60, 107), (427, 240), (1, 9), (7, 1), (2, 2), (33, 35), (300, 100), (120, 400))
"""Heights and widths: squares, landscape, portrait, tiny and narrow images."""


def drawn(height: int, width: int) -> Image.Image:
    """Waves in three colours, a plain rectangle and noise."""
    random = np.random.default_rng(height * width)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 7 + y / 11), np.cos(x * y / 500), x / max(1, width - 1)]
    pixels = 127 + 120 * np.stack(waves, axis=-1)
    pixels[height // 4 : height // 2, width // 3 : width // 2] = random.integers(0, 256, 3)
    noisy = pixels + random.normal(0, 8, pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_settings(directory: Path, kind: str, **settings: Any) -> Path:
    """Write a ``preprocessor_config.json`` that names only what differs from the defaults."""
    text = json.dumps({"image_processor_type": f"{kind}ImageProcessor", **settings})
    (directory / "preprocessor_config.json").write_text(text, encoding="utf-8")
    return directory


def theirs(kind: str, image: Image.Image, **settings: Any) -> dict[str, np.ndarray]:
    """What transformers' processor with Pillow makes of an image."""
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**settings)
    return {
        name: np.asarray(value) for name, value in processor(image, return_tensors="np").items()
    }


def assert_equal(
    directory: Path, kind: str, sizes: Sequence[tuple[int, int]] = SIZES, **settings: Any
) -> None:
    """Compare the inputs of an encoder with transformers' for images of several sizes."""
    process = ImageProcessor.from_bundle(write_settings(directory, kind, **settings))
    for size in sizes:
        image = drawn(*size)
        expected = theirs(kind, image, **settings)
        feeds = process(image).feeds
        for name, value in feeds.items():
            assert value.shape == expected[name].shape, (size, name)
            assert np.abs(value - expected[name]).max() < 1e-5, (size, name)
            assert value.dtype == expected[name].dtype, (size, name)
