"""Pruned bundles that compute something else are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import runtime_models
from onnx import numpy_helper

from edgetie.bundle.bundle import open_bundle
from edgetie.bundle.manifest import write_manifest
from edgetie.errors import PruneMismatchError
from edgetie.prune.comparison import compare_logits, require_tokens
from edgetie.prune.pruner import prune_vocabulary
from edgetie.runtime.text.tokenizer import Tokenizer

TEXT = "the user said hello"


def test_tokens_and_logits(tmp_path: Path) -> None:
    source = open_bundle(runtime_models.write_chat_bundle(tmp_path / "chat"))
    report = prune_vocabulary(source, tmp_path / "small", keep_text=[TEXT])
    lines = (tmp_path / "small" / "kept_tokens.txt").read_text("utf-8").split()
    kept = [int(line) for line in lines]
    old, new = (Tokenizer.from_bundle(bundle) for bundle in (source, report.bundle))
    tokens = np.array(old.encode(TEXT), np.int32)
    twice = np.tile(tokens, 2)
    require_tokens(new, [TEXT, TEXT], twice, kept)
    with pytest.raises(PruneMismatchError, match="other tokens of 'once upon a time'"):
        require_tokens(new, [TEXT, "once upon a time"], twice, kept)
    assert compare_logits(source, tmp_path / "small", tokens, kept) <= 1e-6

    broken = shutil.copytree(tmp_path / "small", tmp_path / "broken")
    model = onnx.load(broken / "model.onnx")
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
    array = numpy_helper.to_array(table).copy()
    array[-1] = np.roll(array[-1], 1)
    table.CopyFrom(numpy_helper.from_array(array, "table"))
    (broken / "model.onnx.data").unlink()
    onnx.save(model, broken / "model.onnx")
    manifest = open_bundle(tmp_path / "small").manifest
    write_manifest(broken, manifest)
    with pytest.raises(PruneMismatchError, match="its logits differ") as error:
        compare_logits(source, broken, tokens, kept)
    assert error.value.exit_code == 1
