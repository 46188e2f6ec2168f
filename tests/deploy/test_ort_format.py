"""The format .ort: the same logits from one file, weights stored once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import runtime_models as tiny

from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.deploy.ort_format import weights_of, write_operators, write_ort
from edgetie.errors import BundleError
from edgetie.ties.groups import TieGroup


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    bundle = open_bundle(tiny.write_packed(tmp_path / "bundle"))
    bundle.manifest.ties = [tie("table")]
    return bundle


def tie(name: str) -> TieGroup:
    size = tiny.VOCAB * tiny.WIDTH * 4
    return TieGroup(name, (tiny.VOCAB, tiny.WIDTH), "FLOAT", size, ["embedding", "head"])


def logits(path: Path, ids: list[int]) -> np.ndarray:
    session = ort.InferenceSession(path)
    feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    for info in session.get_inputs()[2:]:
        feeds[info.name] = np.zeros((1, tiny.HEADS, 0, tiny.HEAD), np.float32)
    return np.asarray(session.run(["logits"], feeds)[0])


def test_one_file_gives_the_same_logits(bundle: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "model.ort"
    write_ort(bundle, target)
    expected = logits(bundle.model_path, [5, 7])
    np.testing.assert_allclose(logits(target, [5, 7]), expected, rtol=1e-4, atol=1e-5)
    digests = weights_of(target)
    table = tiny.weights()["table"]
    assert digests["table"] == hashlib.sha256(table.tobytes()).digest()
    assert list(digests.values()).count(digests["table"]) == 1


def test_operators_of_a_reduced_build(bundle: Bundle, tmp_path: Path) -> None:
    write_ort(bundle, tmp_path / "model.ort")
    write_operators(tmp_path / "model.ort", tmp_path / "operators.config")
    lines = (tmp_path / "operators.config").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Generated from model.ort"
    assert any(line.startswith("com.microsoft;1;GroupQueryAttention") for line in lines)
    assert str(tmp_path) not in "\n".join(lines)


def test_weights_that_are_lost_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    bundle.manifest.ties = [tie("absent")]
    with pytest.raises(BundleError, match=r"absent is lost in the \.ort file"):
        write_ort(bundle, tmp_path / "model.ort")


def test_a_tie_that_would_be_split_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    model = onnx.load(bundle.model_path)
    (table,) = (t for t in model.graph.initializer if t.name == "table")
    again = model.graph.initializer.add()
    again.CopyFrom(table)
    again.name = "again"
    head = next(node for node in reversed(model.graph.node) if "table" in node.input)
    head.input[list(head.input).index("table")] = "again"
    onnx.save(model, bundle.model_path)
    with pytest.raises(BundleError, match=r"table would be in the \.ort file 2 times.*'int8'"):
        write_ort(bundle, tmp_path / "model.ort")


def test_other_files_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"not a file of the format \.ort"):
        weights_of(bundle.model_path)
    bundle.model_path.write_bytes(b"no protobuf")
    with pytest.raises(BundleError, match=r"cannot be written as \.ort"):
        write_ort(bundle, tmp_path / "model.ort")


def test_a_refused_model_prints_nothing(
    bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A message with bytes that are not text is a ValueError, after which the library retries."""
    model = onnx.load(bundle.model_path)
    scales = onnx.numpy_helper.from_array(np.ones(2, np.float32), "scales_of_resize")
    model.graph.initializer.append(scales)
    model.graph.node.append(
        onnx.helper.make_node("Resize", ["table", "", scales.name], ["larger"], mode=b"\xfd")
    )
    onnx.save(model, bundle.model_path)
    with pytest.raises(BundleError, match=r"cannot be written as \.ort"):
        write_ort(bundle, tmp_path / "model.ort")
    assert capfd.readouterr() == ("", "")
