"""Starters of models that read images: their tokens are those of edgetie's answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from image_cases import drawn
from image_starters import KINDS, READER, answers, write_bundle
from starters import read_turns, run

from edgetie import deploy_model

pytestmark = pytest.mark.slow

COUNT = 10
PROMPT = "the user said"
SIZES = {"square.png": (64, 64), "tall.png": (72, 40)}
"""Pillow resizes both in width first, as the graph does."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images."""
    folder = tmp_path_factory.mktemp("images")
    for name, size in SIZES.items():
        drawn(*size).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("llava") / "llava", "llava")


@pytest.fixture(scope="module", params=[*KINDS, READER])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp(request.param) / request.param, request.param)


def test_python_answers_as_edgetie_does(bundle: Path, folder: Path, tmp_path: Path) -> None:
    deploy_model(bundle, "python", tmp_path / "app")
    graphs = {path.name for path in (tmp_path / "app" / "model").glob("*model*.onnx")}
    assert graphs == {"encoder_model.onnx", "decoder_model.onnx"}  # none of other runtimes
    files = [folder / name for name in SIZES]
    program = (
        "import sys\nfrom model import Model\nmodel = Model()\n"
        "for image in sys.argv[1:]:\n"
        f"    text = ''.join(model.answer({PROMPT!r}, image=image, max_new_tokens={COUNT}))\n"
        "    print(model.read, ' '.join(map(str, model.written)), text.encode().hex(), sep=chr(31),"
        " end=chr(30))\n"
        "    model.reset()\n"
    )
    turns = read_turns(run([sys.executable, "-c", program, *files], tmp_path / "app"))
    expected = answers(bundle, files, PROMPT, COUNT)
    assert [turn.tokens for turn in turns] == expected
    assert expected[0] != expected[1]


PROBLEMS = (
    (["--image", "absent.png", PROMPT], "absent.png: cannot be read (No such file or directory)"),
    (["--image", "app.py", PROMPT], "app.py: cannot be read (not an image, or damaged)"),
)


def complaint(command: list[str], folder: Path) -> str:
    """The one line that a starter prints when it exits with code 2."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    return line


def test_what_python_does_not_read(llava: Path, tmp_path: Path) -> None:
    app = tmp_path / "app"
    deploy_model(llava, "python", app)
    for words, reason in PROBLEMS:
        assert complaint([sys.executable, "app.py", *words], app) == f"app: {reason}"
