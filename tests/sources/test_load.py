"""What a text can name, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgetie.errors import SourceError
from edgetie.sources.load import load_source, locate_source


@pytest.mark.parametrize(
    ("files", "name", "kind", "found"),
    [
        (["model.gguf"], "model.gguf", "gguf", "model.gguf"),
        (["d/model.gguf"], "d", "gguf", "d/model.gguf"),
        (["d/model.gguf", "d/a.safetensors", "d/config.json"], "d", "transformers", "d"),
        (["d/config.json", "d/adapter_config.json"], "d", "transformers", "d"),
    ],
)
def test_files(tmp_path: Path, files: list[str], name: str, kind: str, found: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert locate_source(str(tmp_path / name)) == (kind, tmp_path / found)


def test_names_without_files() -> None:
    assert locate_source("package.module:function")[0] == "factory"
    assert locate_source("organisation/name")[0] == "transformers"


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ([], "missing", "no such file or directory"),
        (["m.onnx"], "m.onnx", "is an ONNX file already"),
        (["m.txt"], "m.txt", "not a model"),
        (
            ["d/a.gguf", "d/b.gguf"],
            "d",
            r"several \.gguf files; name one of them: a\.gguf, b\.gguf",
        ),
        (["d/a.safetensors"], "d", r"no config\.json"),
        (["d/adapter_config.json"], "d", "is an adapter of another model"),
    ],
)
def test_what_is_refused(tmp_path: Path, files: list[str], name: str, message: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(SourceError, match=message):
        locate_source(str(tmp_path / name))


def test_no_name_is_refused() -> None:
    with pytest.raises(SourceError, match="no model is named"):
        locate_source("")


def test_an_adapter_names_its_base_model(tmp_path: Path) -> None:
    settings = {"base_model_name_or_path": "organisation/base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(SourceError, match="is an adapter of organisation/base, not a model"):
        locate_source(str(tmp_path))


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(SourceError, match=r"task='tagging': unknown; one of auto") as refused:
        load_source("package.module:function", task="tagging")
    assert (refused.value.parameter, refused.value.value) == ("task", "tagging")


@pytest.mark.parametrize(
    ("source", "files", "message"),
    [
        ("missing", {}, "missing: no such file"),
        ("m.gguf", {"m.gguf": "GGML"}, "m.gguf: not a GGUF file"),
        ("m", {"m/config.json": "{}", "m/model.bin": ""}, "m/model.bin: pickled weights"),
        ("m", {"m/config.json": '{"auto_map": {"a": "b"}}'}, "m: the model has its own Python"),
        ("missing", {"bundle/file": ""}, "bundle: exists but is not a bundle"),
    ],
)
def test_what_is_wrong_is_refused_before_torch_is_imported(
    tmp_path: Path, source: str, files: dict[str, str], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    code = f"""
import sys
from edgetie_cli.main import cli
try:
    cli.main(["export", "{source}", "--output", "bundle"], standalone_mode=False)
except Exception as error:
    print(error, "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.startswith(message)
    assert done.stdout.endswith("False\n")
