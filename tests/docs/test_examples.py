"""The scripts of ``docs/examples`` run as their docstrings say."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import image_reader
import pytest
from adapter_models import AdaptedBundle
from runtime_models import write_chat_bundle

from edgetie.bundle.bundle import open_bundle
from edgetie.bundle.manifest import write_manifest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def run(*arguments: object, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_own_module_and_its_accuracy(tmp_path: Path) -> None:
    tie, tokens = run(EXAMPLES / "own_module.py", tmp_path).splitlines()
    assert "2 uses, 131,072 bytes" in tie
    assert len(tokens.split()) == 8
    paths = {"FP32": str(tmp_path / "fp32"), "INT8": str(tmp_path / "int8")}
    assert "2 passed" in run("-m", "pytest", "-q", EXAMPLES / "accuracy_test.py", **paths)


def test_chat_streams_an_answer(tmp_path: Path) -> None:
    bundle = write_chat_bundle(tmp_path / "bundle")
    assert run(EXAMPLES / "chat.py", bundle, "abc").strip()


def test_an_answer_in_json_parses(tmp_path: Path) -> None:
    bundle = write_chat_bundle(tmp_path / "bundle")
    manifest = open_bundle(bundle).manifest
    manifest.signature.max_positions = 400  # the text and the answer are longer than 48 tokens
    write_manifest(bundle, manifest)
    person = ast.literal_eval(run(EXAMPLES / "structured_answer.py", bundle, "Ada, born in 1815."))
    assert len(person["name"]) <= 40
    assert 0 <= person["born"] <= 2100


@pytest.mark.slow
def test_a_question_about_an_image_is_answered(reader_int8: Path, tmp_path: Path) -> None:
    ((image, number),) = image_reader.examples(1)
    image.save(tmp_path / "number.png")
    asked = (EXAMPLES / "ask_image.py", reader_int8, tmp_path / "number.png")
    assert run(*asked, image_reader.PROMPTS[0]).strip() == number


def test_a_document_is_read_once(tmp_path: Path) -> None:
    bundle = write_chat_bundle(tmp_path / "bundle")
    (tmp_path / "manual.txt").write_text("abc def")
    asked = EXAMPLES / "document_questions.py", bundle, tmp_path / "manual.txt", tmp_path / "cache"
    first = run(*asked, "a")
    assert first.strip()
    assert run(*asked, "a") == first
    assert (tmp_path / "cache").is_file()


def test_every_adapter_continues_the_prompt(adapted_bundle: AdaptedBundle, tmp_path: Path) -> None:
    bundle, chat = tmp_path / "bundle", write_chat_bundle(tmp_path / "chat")
    shutil.copytree(adapted_bundle.directory, bundle)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(chat / name, bundle / name)
    write_manifest(bundle, open_bundle(bundle).manifest)
    output = run(EXAMPLES / "switch_adapters.py", bundle, "abc")
    texts = re.split(r"(?:^|\n)(?:base|small|large): ", output)[1:]
    assert len(texts) == 3
    assert len(set(texts)) > 1


def test_repair_merges_the_copy(tmp_path: Path) -> None:
    output = run(EXAMPLES / "repair_file.py", tmp_path)
    assert "merged: {'head': 'table'}" in output or "merged: {'table': 'head'}" in output


def test_every_example_is_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in listed for path in EXAMPLES.glob("*.py"))
