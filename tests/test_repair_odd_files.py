"""Files that few tools write: other domains, branches, shared data, near tables."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from broken_models import IDS, LOOKUP, ROWS, WIDTH, copies, logits, save, table
from onnx import TensorProto, helper, numpy_helper

from edgetie import open_bundle, quantize_model
from edgetie.errors import BundleError, EdgetieError
from edgetie.export.exporter import ExportReport
from edgetie.harness.ties.equivalence import compare_files
from edgetie.repair import tie_model

pytestmark = pytest.mark.slow  # each test starts several ONNX Runtime processes


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
        tie_model(path, path, force=True)
    with pytest.raises(BundleError, match=r"\.onnx reads it too"):
        tie_model(path, tmp_path / "model.onnx", force=True)
    assert data.read_bytes() == before
    (tmp_path / "sibling.onnx").unlink()
    (tmp_path / "gone.onnx").symlink_to(tmp_path / "nothing")
    tie_model(path, path, force=True)  # its own data may go


def test_files_of_a_bundle_are_not_replaced(
    exported: Callable[[str], ExportReport], tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(exported("Llama").bundle.directory, bundle)
    with pytest.raises(BundleError, match="part of a bundle"):
        tie_model(bundle / "model.onnx", bundle / "model.onnx", force=True)
    for force in (False, True):
        tie_model(bundle / "model.onnx", bundle / "tied.onnx", force=force)
    assert not open_bundle(bundle, hashes=True).is_bare


def choosing(
    path: Path, values: dict[str, np.ndarray], branches: dict[str, list[onnx.TensorProto]]
) -> Path:
    """``x @ head`` in both branches of an If, over the table or each branch's own ``head``."""
    graphs = {}
    for index, (name, own) in enumerate(branches.items()):
        reshape = [helper.make_node("Reshape", ["head", "flat"], [f"h{index}"])] if own else []
        head = f"h{index}" if own else "head"
        matmul = helper.make_node("MatMul", ["x", head], [f"o{index}"])
        out = helper.make_tensor_value_info(f"o{index}", TensorProto.FLOAT, None)
        graphs[f"{name}_branch"] = helper.make_graph([*reshape, matmul], name, [], [out], own)
    nodes = [LOOKUP, helper.make_node("If", ["flag"], ["logits"], **graphs)]
    model = onnx.load(save(path, nodes, values | {"flat": np.array([WIDTH, ROWS])}))
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    onnx.save(model, path)
    return path


def run_branch(path: Path, flag: bool) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input_ids": IDS, "flag": np.array(flag)})[0]


def test_branches_with_weights_of_equal_names(tmp_path: Path) -> None:
    unrelated = np.random.default_rng(7).normal(size=(WIDTH, 3, ROWS // 3)).astype(np.float32)
    equal = table().reshape(unrelated.shape)
    own = {
        "then": [numpy_helper.from_array(unrelated, "head")],
        "else": [numpy_helper.from_array(equal, "head")],
    }
    path = choosing(tmp_path / "two.onnx", {"table": table()}, own)
    report = tie_model(path, tmp_path / "fixed.onnx")
    assert report.shared == {"head": "table"}
    for flag in (True, False):
        np.testing.assert_allclose(run_branch(report.path, flag), run_branch(path, flag), atol=1e-4)
    assert report.bytes_after < report.bytes_before - table().nbytes // 2


def test_a_file_that_fails_on_a_flag_is_not_equal(tmp_path: Path) -> None:
    values = {"table": table(), "head": np.ascontiguousarray(table().T)}
    path = choosing(tmp_path / "whole.onnx", values, {"then": [], "else": []})
    model = onnx.load(path)
    branch = next(a.g for a in model.graph.node[-1].attribute if a.name == "else_branch")
    branch.node[0].op_type = "Gather"
    branch.node[0].input[1] = "flat"  # rows that there are not
    onnx.save(model, tmp_path / "half.onnx")
    for before, after in (("whole", "half"), ("half", "whole")):
        comparison = compare_files(tmp_path / f"{before}.onnx", tmp_path / f"{after}.onnx", ROWS)
        assert not comparison.identical
        assert comparison.relative_error == float("inf")
    assert compare_files(path, path, ROWS).identical


def test_a_tied_file_with_branches_is_quantized(tmp_path: Path) -> None:
    values = {"table": table(), "head": np.ascontiguousarray(table().T)}
    path = choosing(tmp_path / "two.onnx", values, {"then": [], "else": []})
    report = tie_model(path, tmp_path / "fixed.onnx")
    result = quantize_model(report.path, tmp_path / "int8")
    same = quantize_model(path, tmp_path / "same")  # merges copies itself
    sizes = [[file.stat().st_size for file in each.bundle.data_files] for each in (same, result)]
    assert sizes[0] == sizes[1]
    assert [group.dtype for group in result.bundle.manifest.ties] == ["UINT8"]
    for flag in (True, False):
        expected = run_branch(path, flag)
        got = run_branch(result.bundle.model_path, flag)
        assert np.abs(got - expected).max() < 0.03 * np.abs(expected).max()


def test_constants_of_nodes_in_a_file_of_their_own(tmp_path: Path) -> None:
    nodes = [
        LOOKUP,
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32([2]))),
        helper.make_node("Mul", ["x", "c"], ["y"]),
        helper.make_node("Transpose", ["table"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["y", "t"], ["logits"]),
    ]
    path = save(tmp_path / "model.onnx", nodes, {"table": table()})
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="all.bin", size_threshold=0,
        convert_attribute=True,
    )  # fmt: skip
    expected = logits(path)
    report = tie_model(path, tmp_path / "fixed.onnx")
    result = quantize_model(path, tmp_path / "int8")
    (tmp_path / "all.bin").unlink()
    np.testing.assert_allclose(logits(report.path), expected, rtol=1e-5)
    assert np.abs(logits(result.bundle.model_path) - expected).max() < 0.03 * np.abs(expected).max()


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
    report = tie_model(path, tmp_path / "fixed.onnx", max_distance=0.05)
    (near,) = report.near
    assert near.table == "second"
    assert near.distance < 0.002
    assert np.abs(logits(report.path) - logits(path)).max() < 0.01 * np.abs(logits(path)).max()
    with pytest.raises(EdgetieError, match=r"0 to 0\.1"):
        tie_model(path, tmp_path / "far.onnx", max_distance=0.5)


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
    report = tie_model(path, tmp_path / "fixed.onnx")
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
    report = tie_model(path, tmp_path / "fixed.onnx")
    assert report.merged == {"head": "table"}
    assert not report.near
    left = [tensor.name for tensor in onnx.load(report.path).graph.initializer]
    assert "table" in left
    assert "head" not in left


def test_a_transpose_is_found_behind_an_entry_of_another_shape(tmp_path: Path) -> None:
    w = table()
    transposed = np.ascontiguousarray(w.T)
    nodes = [
        LOOKUP,
        helper.make_node("MatMul", ["x", "head"], ["y"]),
        helper.make_node("ReduceSum", ["parts"], ["z"], keepdims=0),
        helper.make_node("Add", ["y", "z"], ["logits"]),
    ]
    values = {"table": w, "parts": transposed.reshape(WIDTH, 3, -1), "head": transposed}
    path = save(tmp_path / "parts.onnx", nodes, values)
    tie_model(path, tmp_path / "fixed.onnx")
    assert copies(tmp_path / "fixed.onnx") == 2  # the table, and what nothing reads as it lies
    np.testing.assert_allclose(logits(tmp_path / "fixed.onnx"), logits(path), rtol=1e-5)


def test_a_copy_in_a_branch_of_another_file(tmp_path: Path) -> None:
    nodes = [LOOKUP, helper.make_node("Identity", ["x"], ["logits"])]
    encoder = save(tmp_path / "encoder.onnx", nodes, {"table": table()})
    transposed = numpy_helper.from_array(np.ascontiguousarray(table().T), "head")
    rows = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    matmul = helper.make_node("MatMul", ["x", "head"], ["out"])
    zeros = helper.make_node("MatMul", ["x", "zeros"], ["none"])
    none = helper.make_tensor_value_info("none", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("Gather", ["short", "input_ids"], ["x"]),
        helper.make_node(
            "If", ["yes"], ["logits"],
            then_branch=helper.make_graph([matmul], "then", [], [rows], [transposed]),
            else_branch=helper.make_graph([zeros], "else", [], [none]),
        ),
    ]  # fmt: skip
    values = {
        "short": table(3), "yes": np.array(True), "zeros": np.zeros((WIDTH, ROWS), np.float32),
    }  # fmt: skip
    decoder = save(tmp_path / "decoder.onnx", nodes, values)
    report = tie_model([encoder, decoder], tmp_path / "tied")
    assert report.shared == {"decoder.onnx: head": "encoder.onnx: table"}
    assert all(each.identical or each.relative_error < 1e-6 for each in report.outputs)
    assert report.bytes_after < report.bytes_before - table().nbytes // 2
