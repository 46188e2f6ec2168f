"""``edgetie quantize`` on the command line: tied tables and what stays in floating point."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import edgetie, refused
from onnx import TensorProto
from table_forms import DEQUANTIZED, MOVED, TABLE, Form, node, stored_tables

from edgetie_cli.quantize import command


def run(*arguments: object) -> None:
    command.main([str(argument) for argument in arguments], standalone_mode=False)


def test_the_first_line_is_what_stayed_in_floating_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = MOVED["a number"].save(tmp_path / "plain.onnx")
    run(path, "--output", tmp_path / "int8")
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("quantized    all but 0.5% of the weights' bytes")
    run(path, "--output", tmp_path / "fp16", "--scheme", "fp16")
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("quantized    all but 100.0% of the weights' bytes")


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = DEQUANTIZED["Tanh"].save(tmp_path / "plain.onnx")
    run(path, "--output", tmp_path / "int8", "--json")
    answer = json.loads(capsys.readouterr().out)
    assert answer["dequantized"] == {"table": "Tanh"}
    assert answer["float_weights"] == []
    assert 0 < answer["float_share"] < 0.01
    assert answer["float_bytes"] == 2 * 64 * 4


def test_a_table_that_would_be_dequantized_is_refused_on_request(tmp_path: Path) -> None:
    path = DEQUANTIZED["Tanh"].save(tmp_path / "plain.onnx")
    done = edgetie("quantize", path, "--output", "no", "--require-tied-int8", cwd=tmp_path)
    assert "--require-tied-int8: the tied weight table: Tanh would read it" in done.stderr
    assert done.returncode == 2
    assert not (tmp_path / "no").exists()
    moved = MOVED["a number"].save(tmp_path / "moved.onnx")
    run(moved, "--output", tmp_path / "int8", "--require-tied-int8", "--quiet")
    assert stored_tables(tmp_path / "int8" / "model.onnx") == ["UINT8"]


def test_a_rounded_copy_is_refused_or_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        node("Cast", "half", "wide", to=TensorProto.FLOAT),
        node("MatMul", "h wide", "logits"),
    ]
    form = Form(nodes, {"half": np.ascontiguousarray(TABLE.T.astype(np.float16))})
    path = form.save(tmp_path / "plain.onnx")
    done = edgetie("quantize", path, "--output", "no", "--quiet", cwd=tmp_path)
    refused(done, "half is table transposed rounded to float16", "--max-distance 0.001")
    run(path, "--output", tmp_path / "int8", "--max-distance", "0.001")
    assert "rounded to float16 but for 0.02% (merged)" in capsys.readouterr().out
