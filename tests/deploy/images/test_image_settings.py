"""What starters know about images, of small bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from image_cases import write_settings
from runtime_models import byte_tokenizer

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.manifest import Manifest, Signature
from edgetie.deploy.chat_format import read_chat_format
from edgetie.deploy.images.image_settings import image_settings
from edgetie.errors import BundleError
from edgetie.graph.tensors import TensorInfo
from edgetie.runtime.images.processor import ImageProcessor
from edgetie.runtime.text.tokenizer import Tokenizer

PARTS = (
    "{% for m in messages %}{{ m['role'] }}:{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}PLACE{% else %} {{ part['text'] }}{% endif %}{% endfor %}\n"
    "{% endfor %}assistant:"
)


def settings_of(directory: Path, template: str | None, processor: str, **tokens: str) -> Any:
    """The settings of a bundle whose encoder reads images of 16 by 16 pixels in 4 patches."""
    directory.mkdir()
    write_settings(directory, "Siglip", size={"height": 16, "width": 16}, image_seq_length=4)
    config = {"processor_class": f"{processor}Processor", "patch_size": 8, "image_seq_length": 4}
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    for file, content in (
        ("processor_config.json", config),
        ("tokenizer_config.json", tokens | ({"chat_template": template} if template else {})),
    ):
        (directory / file).write_text(json.dumps(content), encoding="utf-8")
    pixels = TensorInfo("pixel_values", "float", ("images", 3, 16, 16))
    rows = TensorInfo("image_embeds", "float", ("rows", 8))
    ids = TensorInfo("input_ids", "int64", ("batch", "sequence"))
    signature = Signature([ids, rows], [], image_token_id=7)
    encoder = Signature([pixels], [rows])
    manifest = Manifest({}, "image-text-to-text", "fp32", signature, [], 0, encoder)
    bundle = Bundle(directory, directory / "decoder_model.onnx", manifest)
    tokenizer = Tokenizer.from_bundle(bundle)
    chat = read_chat_format(directory, tokenizer)
    return image_settings(bundle, ImageProcessor.from_bundle(bundle), tokenizer, chat)


def test_texts_around_images_are_those_of_the_chat_template(tmp_path: Path) -> None:
    tokens = {"image_token": "<soft>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    template = PARTS.replace("PLACE", "<boi>")
    settings = settings_of(tmp_path / "chat", template, "Gemma3", **tokens)
    assert settings == {
        "processor": "model/image_processor.onnx",
        "encoder": "model/encoder_model.onnx",
        "inputs": ["pixel_values"],
        "outputs": ["image_embeds"],
        "feeds": ["image_embeds"],
        "required": False,
        "position_axes": 1,
        "size": 8,
        "token_id": 7,
        "token": "<soft>",
        "before_prompt": ["user:\n\n<boi>", "<eoi>\n\n "],
        "next_prompt": ["user:\n\n<boi>", "<eoi>\n\n "],
    }


def test_images_come_first_without_a_chat_template(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "plain", None, "Llava")
    assert settings["before_prompt"] == ["", ""]
    assert settings["next_prompt"] is None
    settings = settings_of(tmp_path / "start", None, "PaliGemma", bos_token="<|im_start|>")
    assert settings["before_prompt"] == ["", "<|im_start|>"]


@pytest.mark.parametrize(
    ("template", "processor", "reason"),
    [
        (PARTS, "Llava", "its chat template does not write an image once before the prompt"),
        (PARTS.replace("PLACE", "<image>"), "Other", "its processor_class is not one whose"),
        (None, "Pixtral", "computes no image_sizes"),
    ],
)
def test_models_that_write_images_otherwise_are_refused(
    template: str | None, processor: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=reason):
        settings_of(tmp_path / "bundle", template, processor)
