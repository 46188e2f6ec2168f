"""Settings of image processors for onnxruntime-genai: the pixel values of edgetie's processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import image_starters
import numpy as np
import onnxruntime_genai as og
import pytest
from image_cases import drawn, write_settings

from edgetie import ImageProcessor
from edgetie.bundle.names import GENAI_PROCESSOR, GRID, PIXELS
from edgetie.export.genai_processor import write_genai_processor

SIZES = ((32, 32), (24, 40), (60, 50))
SQUARE = {"height": 224, "width": 224}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "prompt", "kind", "settings"),
    [
        (
            "qwen3_vl", "<|vision_start|><|vision_end|>", "Qwen2VL",
            {"patch_size": 4, "min_pixels": 256, "max_pixels": 2048},
        ),
        ("gemma3", "<start_of_image>", "Gemma3", {"size": SQUARE, "resample": 2}),
        ("gemma3", "<start_of_image>", "Gemma3", {"size": SQUARE, "resample": 3}),
    ],
)  # fmt: skip
def test_pixel_values(
    name: str, prompt: str, kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    bundle = image_starters.write_bundle(tmp_path / "bundle", name)
    write_settings(bundle, kind, **settings)
    assert write_genai_processor(bundle)
    config = json.loads((bundle / "genai_config.json").read_text())
    config["model"]["vision"]["config_filename"] = GENAI_PROCESSOR
    (bundle / "genai_config.json").write_text(json.dumps(config))
    tokenizer = json.loads((bundle / "tokenizer_config.json").read_text())
    tokenizer["tokenizer_class"] = "Qwen2Tokenizer"
    (bundle / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    process = og.Model(str(bundle)).create_multimodal_processor()
    for size in SIZES:
        path = tmp_path / "image.png"
        drawn(*size).save(path)
        feeds = ImageProcessor.from_bundle(bundle)(path).feeds
        theirs = process(prompt, images=og.Images.open(str(path)))
        np.testing.assert_allclose(theirs[PIXELS].as_numpy(), feeds[PIXELS], atol=1e-5)
        if GRID in feeds:
            np.testing.assert_array_equal(theirs[GRID].as_numpy(), feeds[GRID])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("CLIP", {}), ("Gemma3", {"do_normalize": False}), ("SmolVLM", {}), ("Gemma3", {"size": -1})],
)
def test_processors_that_cannot_be_expressed(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    assert not write_genai_processor(write_settings(tmp_path, kind, **settings))
    assert not write_genai_processor(tmp_path / "absent")
    assert not (tmp_path / GENAI_PROCESSOR).exists()
