"""Prompts with images, against transformers' processors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from image_cases import drawn
from tokenizers import Tokenizer, models, pre_tokenizers

from edgetie.errors import BundleError, ImageError
from edgetie.runtime.images.processor import ImageProcessor
from edgetie.runtime.images.prompts import STYLES

IMAGES = (drawn(100, 300), drawn(400, 120), drawn(9, 9))
GEMMA = {
    "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}  # fmt: skip
INTERN = {
    "start_image_token": "<img>", "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>",
}  # fmt: skip


def tokenizer(*tokens: str, **named: str) -> Any:
    """One of bytes, with special tokens."""
    alphabet = {character: i for i, character in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        extra_special_tokens=named,
    )
    whole.add_special_tokens({"additional_special_tokens": list(tokens)})
    return whole


def image_processor(kind: str, **settings: Any) -> Any:
    return getattr(transformers, f"{kind}ImageProcessorPil")(**settings)


SPLIT = {"size": {"longest_edge": 512}, "max_image_size": {"longest_edge": 128}}
WHOLE: dict[str, Callable[[], Any]] = {
    "Llava": lambda: transformers.LlavaProcessor(
        image_processor("CLIP"), tokenizer("<image>"), patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    ),
    "Llava, all tokens": lambda: transformers.LlavaProcessor(
        image_processor("Siglip"), tokenizer(image_token="<picture>"), patch_size=16,
        vision_feature_select_strategy="full",
    ),
    "PaliGemma": lambda: transformers.PaliGemmaProcessor(
        image_processor("Siglip", image_seq_length=16), tokenizer()
    ),
    "Gemma3": lambda: transformers.Gemma3Processor(
        image_processor("Gemma3", do_pan_and_scan=True), tokenizer(**GEMMA), image_seq_length=9
    ),
    "AyaVision": lambda: transformers.AyaVisionProcessor(
        image_processor("GotOcr2", size={"height": 56, "width": 56}),
        tokenizer("<image>", "<|IMG_PATCH|>"), img_size=56, downsample_factor=2,
    ),
    "Idefics3": lambda: transformers.Idefics3Processor(
        image_processor("Idefics3", **SPLIT), tokenizer(), image_seq_len=4
    ),
}  # fmt: skip
"""Processors that transformers makes without torchvision."""

PARTS: list[tuple[str, Any, Mapping[str, Any], Mapping[str, Any]]] = [
    ("Qwen2VL", ("Qwen2VL", {}), {"image_token": "<|image_pad|>"}, {}),
    ("Qwen2_5_VL", ("Qwen2VL", {}), {"image_token": "<|image_pad|>"}, {}),
    ("Glm4v", ("Glm4v", {}), {"image_token": "<|image|>"}, {}),
    ("Glm46V", ("Glm46V", {}), {"image_token": "<|image|>"}, {}),
    ("Qwen3VL", ("Qwen2VL", {"patch_size": 16}), {"image_token": "<|image_pad|>"}, {}),
    ("InternVL", ("GotOcr2", {"size": {"height": 64, "width": 64}}), INTERN,
     {"image_seq_length": 4}),
    ("SmolVLM", ("SmolVLM", SPLIT), {
        "image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
    }, {"image_seq_len": 4}),
    ("Gemma3n", ("Siglip", {}), GEMMA, {"image_seq_length": 5}),
    ("Gemma4", ("Gemma4", {"max_soft_tokens": 70}), GEMMA, {}),
]  # fmt: skip
"""Processors that need torchvision or audio: image processor, attributes, settings."""


def ours(directory: Path) -> ImageProcessor:
    return ImageProcessor.from_bundle(directory)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("count", [1, 3])
def test_prompts_are_those_of_transformers(name: str, count: int, tmp_path: Path) -> None:
    processor = WHOLE[name]()
    processor.save_pretrained(tmp_path)
    process = ours(tmp_path)
    assert process.prompt is not None
    text = "User: " + " then ".join([process.prompt.placeholder] * count) + " compare\n"
    images = [process(image) for image in IMAGES[:count]]
    expected = processor(images=[list(IMAGES[:count])], text=[text])["input_ids"][0]
    expanded = process.expand_prompt(text, images)
    assert processor.tokenizer(expanded, add_special_tokens=False)["input_ids"] == list(expected)
    image_token = process.prompt.token(process.prompt.style.image)
    counts = sum(image.tokens for image in images)
    assert counts == expanded.count(image_token) > 0
    assert process.adds_start_token == (name == "PaliGemma")


@pytest.mark.parametrize(("name", "images", "tokens", "settings"), PARTS)
def test_places_of_images_are_those_of_transformers(
    name: str, images: Any, tokens: Any, settings: Any, tmp_path: Path
) -> None:
    kind, image_settings = images
    processor_class = getattr(transformers, f"{name}Processor")
    theirs = image_processor(kind, **image_settings)
    theirs.save_pretrained(tmp_path)
    config = {"processor_class": processor_class.__name__, **settings}
    for file, content in (("processor_config.json", config), ("tokenizer_config.json", tokens)):
        (tmp_path / file).write_text(json.dumps(content), encoding="utf-8")
    process = ours(tmp_path)
    assert process.prompt is not None
    processor = object.__new__(processor_class)  # its constructor needs torchvision
    vars(processor).update(tokens, **settings, image_processor=theirs)
    processor.image_token = process.prompt.token(process.prompt.style.placeholder)
    if name == "Gemma3n":
        row = tokens["image_token"] * settings["image_seq_length"]
        processor.full_image_sequence = f"\n\n{tokens['boi_token']}{row}{tokens['eoi_token']}\n\n"
    options = {"return_row_col_info": True} if name == "SmolVLM" else {}
    options |= {"crop_to_patches": True} if name == "InternVL" else {}
    for image in IMAGES:
        inputs, (expected,) = processor._process_images([image], return_tensors="np", **options)
        processed = process(image)
        assert processed.text == expected
        assert processed.tokens > 0
        for feed, value in processed.feeds.items():
            assert np.abs(value - np.asarray(inputs[feed])).max() < 1e-5


def test_lines_of_patches_end_with_a_token(tmp_path: Path) -> None:
    image_processor("Pixtral").save_pretrained(tmp_path)  # its processor needs torchvision
    config = {"processor_class": "PixtralProcessor", "patch_size": 14, "spatial_merge_size": 2}
    (tmp_path / "processor_config.json").write_text(json.dumps(config), encoding="utf-8")
    image = ours(tmp_path)(drawn(50, 80))
    line = "[IMG]" * 3
    assert image.text == f"{line}[IMG_BREAK]{line}[IMG_END]"
    assert image.tokens == 6
    assert image.feeds["image_sizes"].tolist() == [[56, 84]]


def test_every_style_is_compared() -> None:
    tested = {name.split(",")[0] for name in WHOLE} | {name for name, *_ in PARTS} | {"Pixtral"}
    assert {f"{name}Processor" for name in tested} == set(STYLES)


def test_a_prompt_without_placeholders_starts_with_images(tmp_path: Path) -> None:
    processor = WHOLE["PaliGemma"]()
    processor.save_pretrained(tmp_path)
    process = ours(tmp_path)
    expected = processor(images=[IMAGES[0]], text=["caption en"])["input_ids"][0]
    expanded = process.expand_prompt("caption en", [process(IMAGES[0])])
    assert processor.tokenizer(expanded, add_special_tokens=False)["input_ids"] == list(expected)


def test_other_numbers_of_placeholders_are_refused(tmp_path: Path) -> None:
    WHOLE["Llava"]().save_pretrained(tmp_path)
    process = ours(tmp_path)
    image = process(IMAGES[0])
    for text, count in (("no place", 1), ("<image> <image>", 1), ("<image>", 0), ("<image>", 2)):
        with pytest.raises(ImageError, match=rf"<image> \d times for {count} image"):
            process.expand_prompt(text, [image] * count)
    assert process.expand_prompt("no place", []) == "no place"


def test_tokens_without_a_name_are_refused(tmp_path: Path) -> None:
    image_processor("Gemma3").save_pretrained(tmp_path)
    config = '{"processor_class": "Gemma3Processor"}'
    (tmp_path / "processor_config.json").write_text(config, encoding="utf-8")
    with pytest.raises(BundleError, match="names no image_token; copy"):
        ours(tmp_path)(IMAGES[0])


@pytest.mark.parametrize("processor", ["Pixtral", "Gemma4"])
def test_processors_of_another_kind_of_image_are_refused(processor: str, tmp_path: Path) -> None:
    image_processor("ViT").save_pretrained(tmp_path)
    config = {"processor_class": f"{processor}Processor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(BundleError, match="processor_class does not suit the image processor"):
        ours(tmp_path)(IMAGES[0])


def test_prompts_of_other_processors_are_refused(tmp_path: Path) -> None:
    image_processor("ViT").save_pretrained(tmp_path)
    process = ours(tmp_path)
    image = process(IMAGES[0])
    assert (image.text, image.tokens, process.adds_start_token) == ("", 0, False)
    with pytest.raises(BundleError, match="processor_class is not one whose prompts are known"):
        process.expand_prompt("<image>", [image])
