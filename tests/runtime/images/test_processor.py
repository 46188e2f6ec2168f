"""From an image to the inputs of a bundle's encoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from image_cases import drawn, theirs, write_settings

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.manifest import Manifest, Signature
from edgetie.errors import BundleError, ImageError
from edgetie.graph.tensors import TensorInfo
from edgetie.runtime.images.processor import ImageProcessor


def bundle_with(directory: Path, *inputs: TensorInfo) -> Bundle:
    """A bundle whose encoder has these inputs."""
    task, nothing, encoder = "image-text-to-text", Signature([], []), Signature([*inputs], [])
    manifest = Manifest({}, task, "fp32", nothing, [], 0, encoder)
    return Bundle(directory, directory / "decoder_model.onnx", manifest)


def test_the_encoder_gets_its_inputs_in_its_types(tmp_path: Path) -> None:
    write_settings(tmp_path, "Idefics3", max_image_size={"longest_edge": 64})
    pixels = TensorInfo("pixel_values", "float16", (1, "images", 3, 64, 64))
    mask = TensorInfo("pixel_attention_mask", "bool", (1, "images", 64, 64))
    image = drawn(100, 150)
    everything = ImageProcessor.from_bundle(tmp_path)(image).feeds
    assert set(everything) == {"pixel_values", "pixel_attention_mask"}
    feeds = ImageProcessor.from_bundle(bundle_with(tmp_path, pixels))(image).feeds
    assert set(feeds) == {"pixel_values"}
    np.testing.assert_array_equal(feeds["pixel_values"], everything["pixel_values"].astype("f2"))
    feeds = ImageProcessor.from_bundle(bundle_with(tmp_path, pixels, mask))(image).feeds
    assert feeds["pixel_attention_mask"].dtype == bool


def test_a_path_is_read_and_processed(tmp_path: Path) -> None:
    process = ImageProcessor.from_bundle(str(write_settings(tmp_path, "ViT", size=32)))
    drawn(20, 30).save(tmp_path / "image.png")
    expected = theirs("ViT", drawn(20, 30), size=32)["pixel_values"]
    feeds = process(tmp_path / "image.png").feeds
    np.testing.assert_allclose(feeds["pixel_values"], expected, atol=1e-6)
    with pytest.raises(ImageError, match=r"absent\.png"):
        process(tmp_path / "absent.png")


def test_images_that_the_encoder_does_not_read_are_refused(tmp_path: Path) -> None:
    write_settings(tmp_path, "ViT", size=32)
    square = TensorInfo("pixel_values", "float32", ("images", 3, 64, 64))
    with pytest.raises(ImageError, match=r"is \[1, 3, 32, 32\].* reads \['images', 3, 64, 64\]"):
        ImageProcessor.from_bundle(bundle_with(tmp_path, square))(drawn(9, 9))
    patches = TensorInfo("pixel_values", "float32", ("patches", 1176))
    with pytest.raises(ImageError, match="crop the image, or repair"):
        ImageProcessor.from_bundle(bundle_with(tmp_path, patches))(drawn(9, 9))
    ratio = TensorInfo("aspect_ratio_ids", "int64", ("images", 4))
    with pytest.raises(BundleError, match="reads aspect_ratio_ids, which this image processor"):
        ImageProcessor.from_bundle(bundle_with(tmp_path, ratio))(drawn(9, 9))


def test_changed_settings_of_a_bundle_are_refused(tmp_path: Path) -> None:
    path = write_settings(tmp_path, "ViT") / "preprocessor_config.json"
    bundle = bundle_with(tmp_path)
    bundle.manifest.files[path.name] = {"bytes": path.stat().st_size, "sha256": "0" * 64}
    with pytest.raises(BundleError, match="damaged or changed"):
        ImageProcessor.from_bundle(bundle)


@pytest.mark.parametrize("value", [None, -1, "x", [], {}, {"height": "a"}, 1e9, True])
@pytest.mark.parametrize("kind", ["CLIP", "Idefics3", "Qwen2VL", "GotOcr2", "Pixtral", "Donut"])
def test_damaged_settings_are_refused(kind: str, value: object, tmp_path: Path) -> None:
    names = ("size", "patch_size", "max_image_size", "image_mean", "rescale_factor", "resample")
    for name in names:
        write_settings(tmp_path, kind, **{name: value})
        try:
            ImageProcessor.from_bundle(tmp_path)(drawn(20, 30))
        except (BundleError, ImageError) as error:
            message = str(error)
            assert len(message.splitlines()) == 1
            assert json.dumps(name).strip('"') in message or "pixels" in message
