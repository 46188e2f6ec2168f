"""A trained vision-language model from transformers' files to answers: float, int8, commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import image_reader
import numpy as np
import onnx
import pytest
import transformers
from click.testing import CliRunner
from PIL.Image import Image, Palette, Transpose, fromarray

from edgetie.harness.accuracy.check import check_model
from edgetie.harness.ties.inspect import inspect_model
from edgetie.quantize.quantizer import quantize_model
from edgetie.runtime.images.answers import answer_about_images
from edgetie.runtime.session import open_session
from edgetie.runtime.text.tokenizer import Tokenizer
from edgetie_cli.main import cli

pytestmark = pytest.mark.slow

COUNT = 200


@pytest.fixture(scope="module")
def images() -> list[tuple[Image, str]]:
    return image_reader.examples(COUNT)


@pytest.fixture(scope="module")
def expected(reader_checkpoint: Path, images: list[tuple[Image, str]]) -> list[str]:
    """The answers of transformers, with its own processor."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(reader_checkpoint).eval()
    processor = transformers.AutoProcessor.from_pretrained(reader_checkpoint)
    return [
        image_reader.ask(model, processor, image, _prompt(index))
        for index, (image, _) in enumerate(images)
    ]


def test_answers_are_those_of_torch(
    expected: list[str], images: list[tuple[Image, str]], reader_bundle: Path, reader_int8: Path
) -> None:
    assert _equal(expected, [number for _, number in images]) >= 0.95 * COUNT
    assert _equal(expected, _answers(reader_bundle, images)) == COUNT
    assert _equal(expected, _answers(reader_int8, images)) >= COUNT - 2


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-static", "int4", "fp16"])
def test_other_schemes(
    images: list[tuple[Image, str]], reader_bundle: Path, scheme: str, tmp_path: Path
) -> None:
    quantize_model(reader_bundle, tmp_path / scheme, scheme=scheme)
    numbers = [number for _, number in images]
    assert _equal(numbers, _answers(tmp_path / scheme, images)) >= 0.95 * COUNT


def test_the_encoder_in_int8(reader_bundle: Path, reader_int8: Path) -> None:
    encoder = onnx.load(reader_int8 / "encoder_model.onnx", load_external_data=False)
    operators = {node.op_type for node in encoder.graph.node}
    assert "MatMulNBits" in operators
    assert "Conv" not in operators  # of patches
    report = check_model(reader_int8, str(reader_bundle), max_tokens=64, greedy_prompts=1)
    assert report.encoder_error < 0.02
    assert report.encoder_similarity > 0.999


def test_one_table_in_the_files(reader_bundle: Path, reader_int8: Path) -> None:
    for directory in (reader_bundle, reader_int8):
        (tie,) = inspect_model(directory).ties
        assert (len(tie.group.uses), tie.file) == (2, 1)


def test_the_same_image_in_other_forms(
    images: list[tuple[Image, str]], reader_int8: Path, tmp_path: Path
) -> None:
    image, number = images[0]
    grey = image.convert("L")
    exif = image.getexif()
    exif[0x112] = 6  # to be rotated clockwise
    image.transpose(Transpose.ROTATE_90).save(tmp_path / "rotated.jpg", exif=exif)
    image.convert("P", palette=Palette.ADAPTIVE).save(tmp_path / "palette.png")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    fromarray(np.asarray(grey).astype(np.uint16) << 8).save(tmp_path / "16_bits.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.save(tmp_path / "image.webp")
    image.resize((300, 300)).save(tmp_path / "large.png")
    paths = sorted(tmp_path.iterdir())
    assert _answers(reader_int8, [(path, number) for path in paths]) == [number] * len(paths)


def test_commands(reader_checkpoint: Path, images: list[Any], tmp_path: Path) -> None:
    image, number = images[0]
    image.save(tmp_path / "number.png")
    fp32, int8 = tmp_path / "fp32", tmp_path / "int8"
    _run("export", reader_checkpoint, "--output", fp32)
    _run("quantize", fp32, "--output", int8)
    asked = ("--image", tmp_path / "number.png", "--prompt", image_reader.PROMPTS[0])
    for directory in (fp32, int8):
        assert json.loads(_run("generate", directory, *asked, "--json"))["text"] == number
    checked = _run(
        "check", int8, "--reference", fp32, "--images", tmp_path / "number.png", "--json"
    )
    assert json.loads(checked)["encoder_similarity"] > 0.999


def _run(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


def _prompt(index: int) -> str:
    return image_reader.PROMPTS[index % len(image_reader.PROMPTS)]


def _answers(directory: Path, images: Sequence[tuple[Image | Path, str]]) -> list[str]:
    session = open_session(directory)
    tokenizer = Tokenizer.from_bundle(session.bundle)
    answers = []
    for index, (image, _) in enumerate(images):
        chunks = answer_about_images(
            session, tokenizer, [image], _prompt(index), max_new_tokens=image_reader.NEW_TOKENS
        )
        answers.append("".join(chunk.text for chunk in chunks))
    return answers


def _equal(one: list[str], other: list[str]) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))
