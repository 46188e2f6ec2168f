"""The trained model that reads numbers, in the starters: the numbers are in the answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import image_reader
import pytest
from starters import headers, library, modules, run, starter
from web_page import drive

from edgetie import deploy_model, quantize_model

__all__ = ["headers", "library", "modules"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """Files and the numbers in them."""
    folder = tmp_path_factory.mktemp("numbers")
    files = {}
    for index, (image, number) in enumerate(image_reader.examples(3)):
        files[folder / f"{index}.png"] = number
        image.save(folder / f"{index}.png")
    return files


def test_c_reads_numbers(
    reader_int8: Path, library: Path, pictures: dict[Path, str], tmp_path: Path
) -> None:
    app = tmp_path / "app"
    deploy_model(reader_int8, "c", app)
    run(["make", f"ORT={library}"], app)
    for file, number in pictures.items():
        first, second = image_reader.PROMPTS[:2]
        done = subprocess.run(
            ["./app", "--image", file, first, second], cwd=app, capture_output=True, text=True
        )
        assert done.stdout.splitlines()[0] == number
        assert done.stderr.startswith("app: run by edgetie")


def test_python_reads_numbers(reader_int8: Path, pictures: dict[Path, str], tmp_path: Path) -> None:
    app = tmp_path / "app"
    deploy_model(reader_int8, "python", app)
    settings = json.loads((app / "app.json").read_text("utf-8"))["images"]
    assert settings["before_prompt"][0].endswith("<global-img>")
    for file, number in pictures.items():
        prompt = image_reader.PROMPTS[2]
        assert run([sys.executable, "app.py", "--image", file, prompt], app) == f"{number}\n"


def test_the_page_reads_numbers(
    reader_bundle: Path, modules: Path, pictures: dict[Path, str], tmp_path: Path
) -> None:
    quantize_model(reader_bundle, tmp_path / "plain", target="web")
    app = starter(tmp_path / "plain", "web", tmp_path / "app", modules)
    for file, number in pictures.items():
        prompts = (image_reader.PROMPTS[0],)
        (turn,) = drive(app, modules, "", prompts, pictures=(str(file),))["turns"]
        assert turn["answer"] == number
        assert turn["picture"] == [image_reader.SIDE, image_reader.SIDE]
