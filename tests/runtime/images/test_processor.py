"""From an image to the inputs of a bundle's encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import image_models
import numpy as np
import pytest
from image_cases import drawn, theirs, write_settings

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.manifest import Manifest, Signature
from edgetie.errors import BundleError, ImageError
from edgetie.graph.tensors import TensorInfo
from edgetie.runtime.images.embeddings import embed_images
from edgetie.runtime.images.processor import ImageProcessor
from edgetie.runtime.session import open_session

SQUARE = {"height": 16, "width": 16}
GRID_SETTINGS = {"patch_size": 4, "min_pixels": 256, "max_pixels": 2048}
MODELS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], dict[str, str]]] = {
    "llava": (
        "CLIP", {"size": 16, "crop_size": 16}, "Llava",
        {"patch_size": 8, "num_additional_image_tokens": 1,
         "vision_feature_select_strategy": "default"}, {},
    ),
    "paligemma": ("Siglip", {"size": SQUARE, "image_seq_length": 4}, "PaliGemma", {}, {}),
    "gemma3": ("Gemma3", {}, "Gemma3", {"image_seq_length": 4}, {
        "image_token": "<soft>", "boi_token": "<boi>", "eoi_token": "<eoi>",
    }),
    "smolvlm": (
        "SmolVLM", {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}},
        "SmolVLM", {"image_seq_len": 4}, {},
    ),
    "qwen3_vl": ("Qwen2VL", GRID_SETTINGS, "Qwen3VL", {}, {}),
    "qwen2_5_vl": ("Qwen2VL", GRID_SETTINGS, "Qwen2_5_VL", {}, {}),
}  # fmt: skip
"""Image processor, its settings, processor, its settings, and tokens of small models."""


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


@pytest.mark.parametrize("name", MODELS)
def test_an_encoder_makes_an_embedding_for_each_image_token(name: str, tmp_path: Path) -> None:
    kind, image_settings, processor, settings, tokens = MODELS[name]
    model = image_models.build(getattr(image_models, name)())
    image_models.export(model, tmp_path / "bundle")
    directory = write_settings(tmp_path / "bundle", kind, **image_settings)
    config = {"processor_class": f"{processor}Processor", **settings}
    for file, content in (("processor_config.json", config), ("tokenizer_config.json", tokens)):
        (directory / file).write_text(json.dumps(content), encoding="utf-8")
    session = open_session(directory)
    process = ImageProcessor.from_bundle(session.bundle)
    images = [process(drawn(*size)) for size in ((30, 50), (50, 20), (16, 16))]
    for image in images:
        assert embed_images(session, [image.feeds]).count == image.tokens > 0
    together = embed_images(session, [image.feeds for image in images])
    assert together.count == sum(image.tokens for image in images)


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
    square = TensorInfo("pixel_values", "float", ("images", 3, 64, 64))
    with pytest.raises(ImageError, match=r"is \[1, 3, 32, 32\].* reads \['images', 3, 64, 64\]"):
        ImageProcessor.from_bundle(bundle_with(tmp_path, square))(drawn(9, 9))
    patches = TensorInfo("pixel_values", "float", ("patches", 1176))
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
    names = ("size", "patch_size", "max_image_size", "rescale_factor", "resample")
    for name in (*names, "image_mean", "image_std"):
        write_settings(tmp_path, kind, **{name: value})
        try:
            ImageProcessor.from_bundle(tmp_path)(drawn(20, 30))
        except (BundleError, ImageError) as error:
            message = str(error)
            assert len(message.splitlines()) == 1
            assert json.dumps(name).strip('"') in message or "pixels" in message
