"""Answers about images, from a file to a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import image_models
import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from image_cases import drawn, write_settings

from edgetie.errors import BundleError, EdgetieError, ImageError
from edgetie.export.exporter import export_model
from edgetie.runtime.decoding.constraint import Constraint
from edgetie.runtime.decoding.text_generation import Completion
from edgetie.runtime.images.answers import answer_about_images
from edgetie.runtime.images.processor import ImageProcessor
from edgetie.runtime.session import Session, open_session
from edgetie.runtime.text.tokenizer import Tokenizer as BundleTokenizer
from edgetie.sources.source import Source
from edgetie_cli.main import cli

NEW = 5


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model and its bundle, with a tokenizer and the settings of its images."""
    model = image_models.build(image_models.llava())
    directory = tmp_path_factory.mktemp("llava") / "bundle"
    image_models.export(model, directory)
    image_models.write_llava_processor(directory)
    return model, directory


@pytest.fixture(scope="module")
def opened(llava: tuple[Any, Path]) -> tuple[Any, Session, BundleTokenizer]:
    session = open_session(llava[1])
    return llava[0], session, BundleTokenizer.from_bundle(session.bundle)


def torch_answer(model: Any, session: Session, ids: list[int], images: list[Any]) -> list[int]:
    process = ImageProcessor.from_bundle(session.bundle)
    pixels = np.concatenate([process(image).feeds["pixel_values"] for image in images])
    tokens = list(ids)
    for _ in range(NEW):
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([tokens]), pixel_values=torch.from_numpy(pixels)
            ).logits[0, -1]
        tokens.append(int(logits.argmax()))
    return tokens[len(ids) :]


@pytest.mark.parametrize("chat", [True, False])
def test_tokens_are_those_of_torch(opened: Any, chat: bool) -> None:
    model, session, tokenizer = opened
    images = [drawn(30, 50), drawn(20, 20)]
    image = [image_models.TOKEN] * 8
    ids = [1, *image, 5, 6, 9] if chat else [*image, 5, 6]
    chunks = answer_about_images(session, tokenizer, images, "w5 w6", chat=chat, max_new_tokens=NEW)
    (completion,) = [chunk.completion for chunk in chunks if chunk.completion]
    assert completion.prompt_tokens == len(ids)
    assert list(completion.tokens) == torch_answer(model, session, ids, images)


def test_a_place_in_the_prompt(opened: Any) -> None:
    model, session, tokenizer = opened
    chunks = answer_about_images(
        session, tokenizer, [drawn(9, 9)], "w7 <image> w8", chat=False, max_new_tokens=NEW
    )
    (completion,) = [chunk.completion for chunk in chunks if chunk.completion]
    ids = [7, *[image_models.TOKEN] * 4, 8]
    assert list(completion.tokens) == torch_answer(model, session, ids, [drawn(9, 9)])


def test_answers_within_a_constraint_or_up_to_a_text(opened: Any) -> None:
    _, session, _ = opened
    tokenizer = BundleTokenizer(image_models.letter_tokenizer(), {}, None)

    def ask(**options: Any) -> Completion:
        *_, last = answer_about_images(
            session, tokenizer, [drawn(9, 9)], "what", max_new_tokens=NEW, **options
        )
        assert last.completion is not None
        return last.completion

    free = ask().text
    assert ask(stop_strings=[free[2]]).text == free[: free.index(free[2])]
    constraint = Constraint.choices(["cat", "dog"], tokenizer)
    done = ask(constraint=constraint)
    assert done.text in ("cat", "dog")
    assert done.stop_reason == "complete"
    with pytest.raises(EdgetieError, match="stop_strings: would cut"):
        ask(constraint=constraint, stop_strings=["a"])


def test_what_is_refused(opened: Any, tmp_path: Path) -> None:
    _, session, tokenizer = opened

    def ask(images: list[Any], prompt: str | None, **options: Any) -> None:
        next(answer_about_images(session, tokenizer, images, prompt, max_new_tokens=2, **options))

    with pytest.raises(EdgetieError, match="answers a prompt about images; give one"):
        ask([drawn(9, 9)], None)
    with pytest.raises(ImageError, match="<image> 2 times for 1 image"):
        ask([drawn(9, 9)], "w5 <image> <image>", chat=False)
    with pytest.raises(ImageError, match=r"absent\.png"):
        ask([tmp_path / "absent.png"], "w5")
    session.bundle.manifest.task, task = "causal-lm", session.bundle.task
    try:
        with pytest.raises(BundleError, match="which reads no images"):
            ask([drawn(9, 9)], "w5")
    finally:
        session.bundle.manifest.task = task


def test_a_model_that_writes_the_text_of_an_image(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = transformers.ViTConfig(**image_models.VISION, image_size=16, patch_size=8)
    decoder = transformers.TrOCRConfig(
        d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=64,
        max_position_embeddings=32, cross_attention_hidden_size=16, tie_word_embeddings=True,
    )  # fmt: skip
    pair = transformers.VisionEncoderDecoderConfig
    config = pair.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = 3, 62, 0
    model = transformers.VisionEncoderDecoderModel(config).eval()
    source = Source("transformers", "tiny", model, config, config.save_pretrained)
    directory = export_model(source, tmp_path / "bundle").bundle.directory
    write_settings(directory, "ViT", size=16)
    image_models.write_tokenizer(directory)
    session = open_session(directory)
    tokenizer = BundleTokenizer.from_bundle(session.bundle)
    pixels = ImageProcessor.from_bundle(session.bundle)(drawn(9, 30)).feeds["pixel_values"]
    for prompt, start in ((None, [3]), ("w7 w8", [3, 7, 8])):
        chunks = answer_about_images(session, tokenizer, [drawn(9, 30)], prompt, max_new_tokens=NEW)
        (completion,) = [chunk.completion for chunk in chunks if chunk.completion]
        with torch.no_grad():
            expected = model.generate(
                torch.from_numpy(pixels), decoder_input_ids=torch.tensor([start]),
                max_new_tokens=NEW, do_sample=False,
            )[0, len(start) :]  # fmt: skip
        assert list(completion.tokens) == expected.tolist()
    letters = BundleTokenizer(image_models.letter_tokenizer(), {}, None)
    *_, last = answer_about_images(
        session, letters, [drawn(9, 30)], max_new_tokens=NEW,
        constraint=Constraint.choices(["cat", "dog"], letters),
    )  # fmt: skip
    assert last.completion is not None
    assert last.completion.text in ("cat", "dog")
    with pytest.raises(EdgetieError, match="reads one image, not 2"):
        next(answer_about_images(session, tokenizer, [drawn(9, 9)] * 2, max_new_tokens=2))


def test_command(llava: tuple[Any, Path], tmp_path: Path) -> None:
    directory = str(llava[1])
    drawn(30, 50).save(tmp_path / "photo.png")
    photo = str(tmp_path / "photo.png")
    asked = ["generate", directory, "--image", photo, "--prompt", "w5", "--max-new-tokens", "3"]
    done = CliRunner().invoke(cli, [*asked, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["prompt_tokens"], len(report["tokens"])) == (4 + 3, 3)
    for arguments, message in (
        ([*asked, "--prompt", "w6"], "--image goes with one --prompt"),
        ([*asked, "--audio", photo], "without --audio"),
        (["generate", directory, "--image", photo], "answers a prompt about images; give one"),
        (["generate", directory, "--image", directory, "--prompt", "w5"], "cannot be read"),
        (
            ["generate", directory, "--prompt", "<image> w5", "--no-chat"],
            "has 1 places for image embeddings",
        ),
    ):
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code != 0
        assert message in done.output + str(done.exception)
