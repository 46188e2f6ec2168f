"""``tie`` on files that few tools write: other domains, branches, shared data, near tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from broken_models import LOOKUP, ROWS, WIDTH, copies, logits, save, table
from onnx import TensorProto, helper, numpy_helper

from edgetie.errors import BundleError, EdgetieError
from edgetie.repair import tie


def test_files_of_other_models_are_not_replaced(tmp_path: Path) -> None:
    values = {"table": table(), "other": table(1).T.copy()}
    nodes = [LOOKUP, helper.make_node("MatMul", ["x", "other"], ["logits"])]
    path = save(tmp_path / "model.onnx", nodes, values, external=True)
    data = tmp_path / "model.onnx.data"
    (tmp_path / "model.onnx.weights").rename(data)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(e for e in tensor.external_data if e.key == "location").value = data.name
    onnx.save(model, path)
    onnx.save(model, tmp_path / "sibling.onnx")
    before = data.read_bytes()
    with pytest.raises(BundleError, match=r"sibling\.onnx reads it too"):
        tie(path, path, force=True)
    with pytest.raises(BundleError, match=r"\.onnx reads it too"):
        tie(path, tmp_path / "model.onnx", force=True)
    assert data.read_bytes() == before
    (tmp_path / "sibling.onnx").unlink()
    (tmp_path / "edgetie.json").write_text("{}")
    with pytest.raises(BundleError, match="part of a bundle"):
        tie(path, path, force=True)
    (tmp_path / "edgetie.json").unlink()
    tie(path, path, force=True)  # its own data may go


def test_a_near_copy_is_that_of_the_nearest_table(tmp_path: Path) -> None:
    w, rng = table(), np.random.default_rng(5)
    second = w * (1 + 0.02 * rng.normal(size=w.shape)).astype(np.float32)
    head = (second * (1 + 0.001 * rng.normal(size=w.shape))).astype(np.float32)
    nodes = [
        LOOKUP,
        helper.make_node("Gather", ["second", "input_ids"], ["y"]),
        helper.make_node("Add", ["x", "y"], ["z"]),
        helper.make_node("MatMul", ["z", "head"], ["logits"]),
    ]
    values = {"table": w, "second": second, "head": np.ascontiguousarray(head.T)}
    path = save(tmp_path / "two.onnx", nodes, values)
    report = tie(path, tmp_path / "fixed.onnx", max_distance=0.05)
    (near,) = report.near
    assert near.table == "second"
    assert near.distance < 0.002
    assert np.abs(logits(report.path) - logits(path)).max() < 0.01 * np.abs(logits(path)).max()
    with pytest.raises(EdgetieError, match=r"0 to 0\.1"):
        tie(path, tmp_path / "far.onnx", max_distance=0.5)


def test_operators_of_other_domains_stay(tmp_path: Path) -> None:
    nodes = [
        LOOKUP,
        helper.make_node("Transpose", ["table"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["logits"], domain="my"),
    ]
    path = save(tmp_path / "foreign.onnx", nodes, {"table": table()})
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("my", 1))
    body = [
        helper.make_node("MatMul", ["a", "b"], ["c"]),
        helper.make_node("Add", ["c", "c"], ["twice"]),
    ]
    own = [helper.make_opsetid("", 21)]
    model.functions.append(helper.make_function("my", "MatMul", ["a", "b"], ["twice"], body, own))
    onnx.save(model, path)
    report = tie(path, tmp_path / "fixed.onnx")
    assert report.outputs[0].identical
    assert [node.domain for node in onnx.load(report.path).graph.node][-1] == "my"


def test_entries_over_the_same_bytes_become_one(tmp_path: Path) -> None:
    nodes = [
        LOOKUP,
        helper.make_node("Transpose", ["head"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["logits"]),
    ]
    values = {"table": table(), "head": table()}
    path = save(tmp_path / "twice.onnx", nodes, values, external=True)
    model = onnx.load(path, load_external_data=False)
    first, second = model.graph.initializer
    del second.external_data[:]
    second.external_data.extend(first.external_data)
    onnx.save(model, path)
    report = tie(path, tmp_path / "fixed.onnx")
    assert report.merged == {"head": "table"}
    assert not report.near
    left = [tensor.name for tensor in onnx.load(report.path).graph.initializer]
    assert "table" in left
    assert "head" not in left


def test_a_transpose_is_found_behind_an_entry_of_another_shape(tmp_path: Path) -> None:
    w = table()
    turned = np.ascontiguousarray(w.T)
    nodes = [
        LOOKUP,
        helper.make_node("MatMul", ["x", "head"], ["y"]),
        helper.make_node("ReduceSum", ["parts"], ["z"], keepdims=0),
        helper.make_node("Add", ["y", "z"], ["logits"]),
    ]
    values = {"table": w, "parts": turned.reshape(WIDTH, 3, -1), "head": turned}
    path = save(tmp_path / "parts.onnx", nodes, values)
    tie(path, tmp_path / "fixed.onnx")
    assert copies(tmp_path / "fixed.onnx") == 2  # the table, and what nothing reads as it lies
    np.testing.assert_allclose(logits(tmp_path / "fixed.onnx"), logits(path), rtol=1e-5)


def test_a_copy_in_a_branch_of_another_file(tmp_path: Path) -> None:
    nodes = [LOOKUP, helper.make_node("Identity", ["x"], ["logits"])]
    encoder = save(tmp_path / "encoder.onnx", nodes, {"table": table()})
    turned = numpy_helper.from_array(np.ascontiguousarray(table().T), "head")
    rows = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    product = helper.make_node("MatMul", ["x", "head"], ["out"])
    zeros = helper.make_node("MatMul", ["x", "zeros"], ["none"])
    none = helper.make_tensor_value_info("none", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("Gather", ["short", "input_ids"], ["x"]),
        helper.make_node(
            "If", ["yes"], ["logits"],
            then_branch=helper.make_graph([product], "then", [], [rows], [turned]),
            else_branch=helper.make_graph([zeros], "else", [], [none]),
        ),
    ]  # fmt: skip
    values = {
        "short": table(3), "yes": np.array(True), "zeros": np.zeros((WIDTH, ROWS), np.float32),
    }  # fmt: skip
    decoder = save(tmp_path / "decoder.onnx", nodes, values)
    report = tie([encoder, decoder], tmp_path / "tied")
    assert report.shared == {"decoder.onnx: head": "encoder.onnx: table"}
    assert all(each.identical or each.relative_error < 1e-6 for each in report.outputs)
    assert report.bytes_after < report.bytes_before - table().nbytes // 2
