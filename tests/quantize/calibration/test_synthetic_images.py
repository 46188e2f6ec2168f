"""Synthetic images to calibrate on."""

from __future__ import annotations

from pathlib import Path

import image_models
import numpy as np

from edgetie.bundle.bundle import open_bundle
from edgetie.bundle.names import PIXELS
from edgetie.quantize.calibration.synthetic_images import calibration_images


def test_images_are_different_and_always_the_same(tmp_path: Path) -> None:
    image_models.export(image_models.build(image_models.llava()), tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    images, description = calibration_images(bundle)
    assert description == "4 images of random pixels"
    assert [image[PIXELS].shape for image in images] == [(1, 3, 16, 16)] * 4
    assert not np.array_equal(images[0][PIXELS], images[1][PIXELS])
    again, _ = calibration_images(bundle)
    np.testing.assert_array_equal(again[3][PIXELS], images[3][PIXELS])


def test_images_are_drawn_for_a_model_with_a_processor(tmp_path: Path) -> None:
    image_models.export(image_models.build(image_models.llava()), tmp_path / "bundle")
    image_models.write_llava_processor(tmp_path / "bundle")
    images, description = calibration_images(open_bundle(tmp_path / "bundle"))
    assert description == "4 drawn images"
    assert [image[PIXELS].shape for image in images] == [(1, 3, 16, 16)] * 4
    assert all(np.abs(image[PIXELS]).max() < 3 for image in images)  # normalized colours
