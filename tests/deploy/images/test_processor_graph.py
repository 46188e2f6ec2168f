"""Image processors as graphs, against those in Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from image_cases import SIZES, drawn, write_settings

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.manifest import Manifest, Signature
from edgetie.deploy.images.processor_graph import processor_graph
from edgetie.errors import BundleError
from edgetie.graph.tensors import TensorInfo
from edgetie.runtime.images.processor import ImageProcessor

SQUARE = {"height": 48, "width": 40}
FEW_PIXELS = {"min_pixels": 784, "max_pixels": 12544}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("CLIP", {"size": 32, "crop_size": 32}),
    ("CLIP", {"size": 32, "crop_size": 50, "resample": 1}),
    ("CLIP", {"size": {"shortest_edge": 30, "longest_edge": 70}, "do_center_crop": False}),
    ("CLIP", {"size": {"max_height": 50, "max_width": 60}, "do_center_crop": False}),
    ("CLIP", {"do_resize": False, "crop_size": 33}),
    ("Siglip", {"size": SQUARE}),
    ("Siglip", {"size": SQUARE, "resample": 1, "do_rescale": False}),
    ("Siglip", {"size": SQUARE, "do_normalize": False}),
    ("ViT", {"size": SQUARE}),
    ("Blip", {"size": SQUARE, "do_pad": True, "pad_size": {"height": 60, "width": 70}}),
    ("DeiT", {"size": SQUARE, "crop_size": 30}),
    ("Gemma3", {"size": SQUARE}),
    ("Llava", {"size": 32, "crop_size": 32, "do_pad": True}),
    ("Llava", {"size": 32, "crop_size": 32, "do_pad": True, "image_mean": 0.5}),
    ("Donut", {"size": SQUARE}),
    ("Donut", {"size": SQUARE, "do_center_crop": True, "crop_size": 20}),
    ("GotOcr2", {"size": SQUARE}),
    ("Qwen2VL", FEW_PIXELS),
    ("Qwen2VL", {"patch_size": 16, "size": {"shortest_edge": 4096, "longest_edge": 65536}}),
    ("Qwen2VL", {"temporal_patch_size": 1, "merge_size": 3}),
    ("Glm4v", {"size": {"shortest_edge": 12544, "longest_edge": 100352}}),
    ("Glm46V", {"size": {"shortest_edge": 784, "longest_edge": 47040000}, "patch_size": 16}),
    ("Idefics3", {"do_image_splitting": False, "max_image_size": {"longest_edge": 40},
                  "size": {"longest_edge": 90}}),
    ("SmolVLM", {"do_image_splitting": False, "max_image_size": {"longest_edge": 64},
                 "size": {"longest_edge": 3 * 1366}}),
]  # fmt: skip


def processor(directory: Path, kind: str, names: tuple[str, ...] = (), **settings: Any) -> Any:
    """The processor of a bundle whose encoder reads what it computes, or ``names``."""
    write_settings(directory, kind, **settings)
    feeds = ImageProcessor.from_bundle(directory)(drawn(64, 64)).feeds
    inputs = [
        TensorInfo(name, str(feeds[name].dtype), ("n",) * feeds[name].ndim)
        for name in names or feeds
    ]
    encoder, nothing = Signature(inputs, []), Signature([], [])
    manifest = Manifest({}, "image-text-to-text", "fp32", nothing, [], 0, encoder)
    return ImageProcessor.from_bundle(Bundle(directory, directory / "decoder_model.onnx", manifest))


def started(process: ImageProcessor) -> Any:
    graph = ir.to_proto(processor_graph(process)).SerializeToString()
    return ort.InferenceSession(graph, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_inputs_are_those_of_the_processor_to_a_level(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    process = processor(tmp_path, kind, **settings)
    session = started(process)
    names = [output.name for output in session.get_outputs()]
    level = 1.0
    if process.settings.flag("do_rescale"):
        level *= process.settings.number("rescale_factor")
    if process.settings.flag("do_normalize"):
        level /= process.settings.channels("image_std").min()
    equal, close = [], []
    for size in SIZES:
        image = drawn(*size)
        expected = process(image).feeds
        assert set(names) == set(expected)
        for name, value in zip(
            names, session.run(names, {"image": np.asarray(image)}), strict=True
        ):
            assert value.shape == expected[name].shape, (size, name)
            assert value.dtype == expected[name].dtype
            difference = np.abs(value - expected[name])
            equal.append((difference < 1e-3 * level).mean())
            close.append((difference < 1.01 * level).mean())
    # Pillow 13 resizes images that shrink more in height first in height, other versions in width
    assert np.mean(equal) > 0.96
    assert np.mean(close) > 0.999


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("SmolVLM", {}, "do_image_splitting splits images into tiles"),
        ("GotOcr2", {"crop_to_patches": True}, "crop_to_patches splits images into tiles"),
        ("Donut", {"do_align_long_axis": True}, "do_align_long_axis rotates images"),
        ("ViT", {"resample": 4}, "resample is 4, a filter that starters do not have"),
        ("Siglip2", {}, "image_processor_type is one that starters do not have"),
    ],
)
def test_settings_that_a_graph_does_not_express_are_named(
    kind: str, settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=f"preprocessor_config.json: {reason}"):
        processor_graph(processor(tmp_path, kind, **settings))


def test_only_inputs_of_the_encoder_are_computed(tmp_path: Path) -> None:
    whole = processor(tmp_path, "SmolVLM", do_image_splitting=False)
    assert len(started(whole).get_outputs()) == 2
    pixels = processor(tmp_path, "SmolVLM", ("pixel_values",), do_image_splitting=False)
    assert [output.name for output in started(pixels).get_outputs()] == ["pixel_values"]
    without_grid = processor(tmp_path, "ViT")
    grid = TensorInfo("image_grid_thw", "int64", (1, 3))
    wrong = replace(without_grid, inputs=(*without_grid.inputs, grid))
    with pytest.raises(BundleError, match="the encoder reads image_grid_thw, which the starters'"):
        processor_graph(wrong)
