"""Small models that read images, with all that a starter needs, and the answers of edgetie."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import image_models
import numpy as np
import torch
import transformers
from image_cases import write_settings
from runtime_models import byte_tokenizer

from edgetie import Tokenizer, open_session
from edgetie.export.exporter import export_model
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.decoding.generation import GREEDY, continue_prompt
from edgetie.runtime.images.answers import answer_about_images
from edgetie.runtime.images.embeddings import embed_images
from edgetie.runtime.images.processor import ImageProcessor
from edgetie.sources.source import Source

READER = "trocr"
TOKENS = ("<image>", "<|image_pad|>", "<end>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] }}\n{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}PLACE{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GRID = {"patch_size": 4, "min_pixels": 256, "max_pixels": 2048}
KINDS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], str]] = {
    "llava": (
        "CLIP", {"size": 16, "crop_size": 16}, "Llava",
        {"patch_size": 8, "num_additional_image_tokens": 1,
         "vision_feature_select_strategy": "default"}, "<image>",
    ),
    "paligemma": (
        "Siglip", {"size": {"height": 16, "width": 16}, "image_seq_length": 4}, "PaliGemma", {}, "",
    ),
    "qwen3_vl": ("Qwen2VL", GRID, "Qwen3VL", {}, "<|image_pad|>"),
}  # fmt: skip
"""Image processor, its settings, processor, its settings, and what the chat template writes."""

GEMMA3 = "gemma3"
_NOT_DEPLOYED = {GEMMA3: ("Gemma3", {}, "Gemma3", {"image_seq_length": 4}, "<image>")}


def write_bundle(directory: Path, name: str) -> Path:
    """Export a random model whose answers depend on the image, with a byte-level tokenizer."""
    if name == READER:
        return _write_reader(directory)
    kind, image_settings, processor, settings, placeholder = (KINDS | _NOT_DEPLOYED)[name]
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens([*TOKENS])
    token = "<|image_pad|>" if placeholder == "<|image_pad|>" else "<image>"
    config = getattr(image_models, name)()
    config.text_config.vocab_size = tokenizer.get_vocab_size()
    config.text_config.max_position_embeddings = 256
    config.image_token_id = config.image_token_index = tokenizer.token_to_id(token)
    config.text_config.eos_token_id = config.eos_token_id = tokenizer.token_to_id("<end>")
    model = image_models.build(config)
    _make_lively(model)
    image_models.export(model, directory)
    write_settings(directory, kind, **image_settings)
    tokens = {"image_token": token, "bos_token": "<|im_start|>"}
    if name == GEMMA3:
        tokens |= {"boi_token": "<image>", "eoi_token": "<end>"}
    if placeholder:
        tokens["chat_template"] = TEMPLATE.replace("PLACE", placeholder)
    for file, content in (
        ("processor_config.json", {"processor_class": f"{processor}Processor", **settings}),
        ("tokenizer_config.json", tokens),
    ):
        (directory / file).write_text(json.dumps(content), encoding="utf-8")
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def _write_reader(directory: Path) -> Path:
    """Export a random encoder-decoder model that writes the text of an image."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    encoder = transformers.ViTConfig(**image_models.VISION, image_size=16, patch_size=8)
    decoder = transformers.TrOCRConfig(
        d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32,
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=32,
        cross_attention_hidden_size=16, tie_word_embeddings=True,
    )  # fmt: skip
    pair = transformers.VisionEncoderDecoderConfig
    config = pair.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    model = transformers.VisionEncoderDecoderModel(config).eval()
    _make_lively(model)
    source = Source("transformers", "tiny", model, config, config.save_pretrained)
    export_model(source, directory)
    write_settings(directory, "ViT", size=16)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def _make_lively(model: torch.nn.Module) -> None:
    """Let layers count for more than the table, so that tokens depend on those before them."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.02 if "embed_tokens" in name else 0.3)


def answers(
    bundle: Path, images: Sequence[object], prompt: str | None, count: int
) -> list[list[int]]:
    """The tokens that edgetie writes about each image."""
    session = open_session(bundle, provider="cpu")
    tokenizer = Tokenizer.from_bundle(session.bundle)
    found = []
    for image in images:
        *_, last = answer_about_images(
            session, tokenizer, [image], prompt, max_new_tokens=count  # type: ignore[list-item]
        )  # fmt: skip
        assert last.completion is not None
        found.append(last.completion.tokens)
    return found


def next_answer(
    bundle: Path, image: object, prompts: Sequence[str], answer: str, count: int
) -> tuple[int, list[int]]:
    """The tokens that edgetie reads and writes for the second of two prompts, in one run."""
    session = open_session(bundle, provider="cpu")
    tokenizer = Tokenizer.from_bundle(session.bundle)
    process = ImageProcessor.from_bundle(session.bundle)
    read = process(image)  # type: ignore[arg-type]

    def message(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}]}

    messages = [message("user", prompts[0]), message("assistant", answer)]
    messages[0]["content"].insert(0, {"type": "image"})
    text = tokenizer.apply_chat_template([*messages, message("user", prompts[1])])
    ids = tokenizer.encode(process.expand_prompt(text, [read]), add_special_tokens=False)
    decoder = Decoder(session, 1, len(ids) + count)
    embeddings = embed_images(session, [read.feeds])
    logits = decoder.prefill(np.array([ids]), image_embeddings=embeddings)
    steps = continue_prompt(decoder, logits, count, GREEDY, None, [ids])
    return len(ids), [int(step.tokens[0]) for step in steps]
