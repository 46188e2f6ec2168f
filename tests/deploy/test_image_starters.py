"""Starters of models that read images: their tokens are those of edgetie's answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from image_cases import drawn
from image_starters import KINDS, READER, answers, next_answer, write_bundle
from PIL import Image
from runtime_models import write_chat_bundle
from starters import build, headers, library, modules, read_turns, run, starter
from web_page import drive

from edgetie import Tokenizer, deploy_model, open_bundle
from edgetie.bundle.manifest import bare_manifest, write_manifest

__all__ = ["headers", "library", "modules"]

pytestmark = pytest.mark.slow

COUNT = 10
ORIENTATION = 0x0112
PROMPT = "the user said"
SIZES = {"square.png": (64, 64), "tall.png": (72, 40)}
"""Pillow resizes both in width first, as the graph does."""


PROGRAM = """
import sys
from model import Model
model, (most, *words) = Model(), sys.argv[1:]
for image, prompt in zip(words[::2], words[1::2]):
    if image != "-":
        model.reset()
    options = {"image": image if image != "-" else None, "max_new_tokens": int(most)}
    text = "".join(model.answer(prompt, **options)).encode().hex()
    print(model.read, " ".join(map(str, model.written)), text, sep=chr(31), end=chr(30))
"""
"""Does in Python what ``image_conversation.c`` does in C."""
FIRST_PROMPTS = (PROMPT, "hello", "once upon a time", "a small model", "every question", "write")


def asked(files: Iterable[Path]) -> list[object]:
    """Arguments that ask the same of each image."""
    return [word for file in files for word in (file, PROMPT)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, one of which is a photo that is stored on its side."""
    folder = tmp_path_factory.mktemp("images")
    for name, size in SIZES.items():
        drawn(*size).save(folder / name)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    drawn(64, 52).save(folder / "turned.jpg", exif=exif)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("llava") / "llava", "llava")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokens have positions of three axes."""
    return write_bundle(tmp_path_factory.mktemp("grid") / "qwen3_vl", "qwen3_vl")


@pytest.fixture(scope="module")
def returned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose runs return a new cache, as do those that see all of an image at once."""
    bundle = write_bundle(tmp_path_factory.mktemp("returned") / "llava", "llava")
    manifest = bundle / "edgetie.json"
    text = manifest.read_text("utf-8")
    manifest.write_text(text.replace('"cache_in_place": true', '"cache_in_place": false'), "utf-8")
    assert not open_bundle(bundle).manifest.signature.cache_in_place
    return bundle


@pytest.fixture(scope="module", params=[*KINDS, READER])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp(request.param) / request.param, request.param)


def test_python_answers_as_edgetie_does(bundle: Path, folder: Path, tmp_path: Path) -> None:
    deploy_model(bundle, "python", tmp_path / "app")
    graphs = {path.name for path in (tmp_path / "app" / "model").glob("*model*.onnx")}
    assert graphs == {"encoder_model.onnx", "decoder_model.onnx"}  # none of other runtimes
    files = [folder / name for name in SIZES]
    turns = read_turns(run([sys.executable, "-c", PROGRAM, COUNT, *asked(files)], tmp_path / "app"))
    expected = answers(bundle, files, PROMPT, COUNT)
    assert [turn.tokens for turn in turns] == expected
    assert expected[0] != expected[1]


def test_c_answers_as_edgetie_does(
    bundle: Path, folder: Path, library: Path, tmp_path: Path
) -> None:
    app = tmp_path / "app"
    deploy_model(bundle, "c", app)
    build(app, library, "image_conversation")
    files = []
    for name in SIZES:
        files.append(app / Path(name).with_suffix(".ppm").name)
        Image.open(folder / name).save(files[-1])
    turns = read_turns(run(["./image_conversation", COUNT, *asked(files)], app))
    expected = answers(bundle, files, PROMPT, COUNT)
    assert [turn.tokens for turn in turns] == expected


def start(target: str, bundle: Path, app: Path, library: Path) -> list[str]:
    """Deploy a model; returns the command of its starter."""
    deploy_model(bundle, target, app)
    if target == "python":
        return [sys.executable, "app.py"]
    run(["make", f"ORT={library}"], app)
    return ["./app"]


def complaint(command: list[str], folder: Path) -> str:
    """The one line that a starter prints when it exits with code 2."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2
    assert not done.stdout.strip()
    (line,) = done.stderr.splitlines()
    return line


def test_the_page_answers_as_edgetie_does(
    bundle: Path, folder: Path, modules: Path, tmp_path: Path
) -> None:
    app = starter(bundle, "web", tmp_path / "app", modules)
    files = [str(folder / name) for name in SIZES]
    tokenizer = Tokenizer.from_bundle(open_bundle(bundle))
    expected = [tokenizer.decode(ids) for ids in answers(bundle, files, PROMPT, COUNT)]
    query = f"?tokens={COUNT}"
    for file, text, size in zip(files, expected, SIZES.values(), strict=True):
        (turn,) = drive(app, modules, query, (PROMPT,), pictures=(file,))["turns"]
        assert turn["answer"] == text
        assert turn["picture"] == list(size)


def test_the_page_takes_pictures_and_names_what_it_does_not_read(
    llava: Path, folder: Path, modules: Path, tmp_path: Path
) -> None:
    app = starter(llava, "web", tmp_path / "app", modules)
    wrong = app / "README.md"
    pictures = ("camera", str(wrong), str(folder / "turned.jpg"))
    prompts = (PROMPT, PROMPT, PROMPT)
    found = drive(app, modules, f"?tokens={COUNT}", prompts, pictures=pictures)
    camera, none, turned = found["turns"]
    assert min(camera["picture"]) > 100
    assert camera["answer"]
    assert none["picture"] is None
    assert "README.md: not an image that this browser reads, or damaged" in found["states"]
    assert turned["picture"] == [52, 64]


@pytest.mark.parametrize("target", ["python", "c", "web"])
@pytest.mark.parametrize("kind", ["grid", "returned"])
def test_a_second_turn_reads_only_what_the_cache_lacks(
    request: pytest.FixtureRequest,
    folder: Path,
    library: Path,
    modules: Path,
    tmp_path: Path,
    target: str,
    kind: str,
) -> None:
    bundle, file, count = request.getfixturevalue(kind), folder / "square.ppm", 3
    Image.open(folder / "square.png").save(file)
    tokenizer = Tokenizer.from_bundle(open_bundle(bundle))
    for prompt in FIRST_PROMPTS:  # random weights write characters after one of these
        (first,) = answers(bundle, [file], prompt, count)
        text = tokenizer.decode(first)
        if "\ufffd" not in text:
            break
    assert "\ufffd" not in text
    length, second = next_answer(bundle, file, (prompt, "and?"), text, count)
    app = tmp_path / "app"
    if target == "web":
        starter(bundle, target, app, modules)
        pictures = (str(folder / "square.png"), "")
        found = drive(app, modules, f"?tokens={count}", (prompt, "and?"), pictures=pictures)
        assert found["turns"][0]["answer"] == text
        assert found["turns"][1]["answer"] == tokenizer.decode(second)
        assert int(found["turns"][1]["state"].split()[0]) < length - 20
        return
    deploy_model(bundle, target, app)
    command: list[object] = [sys.executable, "-c", PROGRAM]
    if target == "c":
        build(app, library, "image_conversation")
        command = ["./image_conversation"]
    turns = read_turns(run([*command, count, file, prompt, "-", "and?"], app))
    assert [turn.tokens for turn in turns] == [first, second]
    assert turns[1].read < length - 20


@pytest.mark.parametrize("target", ["python", "c"])
def test_files_and_conversations_on_the_command_line(
    llava: Path, folder: Path, library: Path, tmp_path: Path, target: str
) -> None:
    app = tmp_path / "app"
    command = start(target, llava, app, library)
    tokenizer = Tokenizer.from_bundle(open_bundle(llava))
    options = ["--max-new-tokens", str(COUNT)]
    for name in ("square.png", "turned.jpg"):
        file = str(folder / name)
        expected = tokenizer.decode(answers(llava, [file], PROMPT, COUNT)[0])
        done = subprocess.run(
            [*command, "--image", file, PROMPT, "and?", *options], cwd=app, capture_output=True,
            errors="replace", check=True,
        )  # fmt: skip
        assert done.stdout.startswith(expected)
        assert done.stderr.startswith("app: run by edgetie")
    empty = app / "README.md"
    assert complaint([*command, "--image", "absent.png", PROMPT], app) == (
        "app: absent.png: cannot be read (No such file or directory)"
    )
    reason = {"python": "not an image, or damaged", "c": "not PPM, PNG or JPEG"}[target]
    assert complaint([*command, "--image", str(empty), PROMPT], app) == (
        f"app: {empty}: cannot be read ({reason})"
    )
    done = subprocess.run([*command, "<image>"], cwd=app, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "app: <image> stands for an image; leave it out of the prompt\n"


@pytest.mark.parametrize("target", ["python", "c"])
def test_images_that_are_missing_or_not_read(
    folder: Path, library: Path, tmp_path: Path, target: str
) -> None:
    text = open_bundle(write_chat_bundle(tmp_path / "text"))
    text.manifest.signature.inputs = bare_manifest(text.model_path).signature.inputs
    write_manifest(text.directory, text.manifest)
    command = start(target, text.directory, tmp_path / "plain", library)
    file = str(folder / "square.png")
    assert complaint([*command, "--image", file, PROMPT], tmp_path / "plain") == (
        f"app: {file}: the model reads no images"
    )
    reader = write_bundle(tmp_path / "reader", READER)
    command = start(target, reader, tmp_path / "app", library)
    assert "the model writes the text of an image; give it one" in complaint(
        [*command, PROMPT], tmp_path / "app"
    )
    done = subprocess.run(
        [*command, "--image", file, "--max-new-tokens", "5"], cwd=tmp_path / "app",
        capture_output=True, errors="replace", check=True,
    )  # fmt: skip
    ids = answers(reader, [file], None, 5)[0]
    assert done.stdout.rstrip("\n") == Tokenizer.from_bundle(open_bundle(reader)).decode(ids)
