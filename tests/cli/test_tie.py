"""``edgetie tie`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from broken_models import broken, copies

from edgetie.errors import EdgetieError
from edgetie_cli.tie import command


def run(*arguments: object) -> None:
    command.main([str(argument) for argument in arguments], standalone_mode=False)


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = broken(tmp_path / "broken.onnx", "folded Transpose")
    run(path, "--output", tmp_path / "fixed.onnx", "--json")
    answer = json.loads(capsys.readouterr().out)
    assert answer["path"] == str(tmp_path / "fixed.onnx")
    assert answer["merged"] == {"head": "table"}
    assert answer["ties"][0]["name"] == "table"
    assert answer["outputs"][0]["reason"] is None
    assert set(answer) == {
        "path", "task", "no_bundle", "merged", "shared", "near", "merged_near", "skipped", "ties",
        "bytes_before", "bytes_after", "outputs", "seconds",
    }  # fmt: skip
    assert copies(tmp_path / "fixed.onnx") == 1


def test_text_and_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = broken(tmp_path / "broken.onnx", "duplicate")
    run(path, "--output", tmp_path / "fixed.onnx")
    assert "merged       head into table" in capsys.readouterr().out
    with pytest.raises(EdgetieError, match="already exists"):
        run(path, "--output", tmp_path / "fixed.onnx", "--quiet")
