"""Files whose shared weights are stored twice, as exporters and converters leave them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from broken_models import IDS, LOOKUP, ROWS, VARIANTS, WIDTH, broken, copies, logits, save, table
from onnx import TensorProto, helper, numpy_helper

from edgetie.harness.ties.equivalence import compare_files
from edgetie.repair import tie_model


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_table_remains_and_the_outputs_are_equal(tmp_path: Path, variant: str) -> None:
    path = broken(tmp_path / "broken.onnx", variant)
    report = tie_model(path, tmp_path / "fixed.onnx")
    assert copies(tmp_path / "fixed.onnx") == 1
    assert len(report.merged) + len(report.shared) == (2 if variant == "subgraphs" else 1)
    assert report.outputs[0].reason is None
    assert report.outputs[0].relative_error < 1e-6
    np.testing.assert_allclose(logits(tmp_path / "fixed.onnx"), logits(path), atol=1e-5)
    assert report.bytes_after < report.bytes_before * 0.6
    (group,) = report.ties if variant != "other shape" else report.ties[:1]
    assert group.name == "table"


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_a_square_matrix_and_its_transpose(tmp_path: Path, names: tuple[str, str]) -> None:
    w = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    values = dict(zip(names, (w, np.ascontiguousarray(w.T)), strict=True))
    nodes = [
        helper.make_node("Gather", ["a", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "b"], ["logits"]),
    ]
    path = save(tmp_path / "square.onnx", nodes, values)
    ids = np.array([[5, 7, 63, 0]])
    report = tie_model(path, tmp_path / "fixed.onnx")
    assert copies(report.path, 64 * 64) == 1
    before, after = (
        onnxruntime.InferenceSession(str(file)).run(["logits"], {"input_ids": ids})[0]
        for file in (path, report.path)
    )
    np.testing.assert_array_equal(before, after)


def quantized(path: Path, *, ratio: float) -> Path:
    """An int8 table, and an int8 head whose scale is ``ratio`` times as large."""
    w = table()
    scale = (np.abs(w).max() / 127).astype(np.float32)
    stored = np.rint(w / scale).astype(np.int8)
    other = np.clip(np.rint(w / (scale * ratio)), -127, 127).astype(np.int8)
    values = {
        "quantized": stored, "scale": scale,
        "head_quantized": np.ascontiguousarray(other.T), "head_scale": np.float32(scale * ratio),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gather", ["quantized", "input_ids"], ["c"]),
        helper.make_node("DequantizeLinear", ["c", "scale"], ["x"]),
        helper.make_node("DequantizeLinear", ["head_quantized", "head_scale"], ["head"]),
        helper.make_node("MatMul", ["x", "head"], ["logits"]),
    ]
    return save(path, nodes, values)


def test_int8_copies_are_merged(tmp_path: Path) -> None:
    path = quantized(tmp_path / "int8.onnx", ratio=1.0)
    report = tie_model(path, tmp_path / "fixed.onnx")
    assert report.merged == {"head_quantized": "quantized"}
    assert copies(tmp_path / "fixed.onnx") == 1
    np.testing.assert_allclose(logits(tmp_path / "fixed.onnx"), logits(path), atol=1e-5)


def test_near_copies_are_reported_and_merged_on_request(tmp_path: Path) -> None:
    w = table()
    rounded = w + np.random.default_rng(1).normal(size=w.shape).astype(np.float32) * 0.004
    nodes = [LOOKUP, helper.make_node("MatMul", ["x", "head"], ["logits"])]
    values = {"table": w, "head": np.ascontiguousarray(rounded.T), "other": table(3)}
    nodes.append(helper.make_node("Gather", ["other", "input_ids"], ["unused"]))
    path = save(tmp_path / "near.onnx", nodes, values)
    report = tie_model(path, tmp_path / "unmerged.onnx")
    (near,) = report.near
    assert (near.name, near.table, near.transposed) == ("head", "table", True)
    assert near.distance == pytest.approx(0.004, rel=0.1)
    assert report.merged_near == ()
    assert report.outputs[0].identical
    report = tie_model(path, tmp_path / "merged.onnx", max_distance=0.01)
    assert report.merged_near == ("head",)
    assert copies(tmp_path / "merged.onnx") == 1
    assert 0 < report.outputs[0].relative_error < 0.02


def test_a_tied_file_stays_as_it_is(tmp_path: Path) -> None:
    path = broken(tmp_path / "broken.onnx", "folded Transpose")
    tie_model(path, tmp_path / "fixed.onnx")
    report = tie_model(tmp_path / "fixed.onnx", tmp_path / "again.onnx")
    assert (report.merged, report.shared, report.outputs[0].identical) == ({}, {}, True)
    assert (tmp_path / "again.onnx.data").read_bytes() == (
        tmp_path / "fixed.onnx.data"
    ).read_bytes()


def test_equal_bytes_of_another_type_are_no_copy(tmp_path: Path) -> None:
    """Zeros are zeros in every type."""
    values = {
        "table": np.zeros((ROWS, WIDTH), np.float32), "again": np.zeros((ROWS, WIDTH), np.float32),
        "quantized": np.zeros((ROWS, WIDTH), np.int32), "more": np.zeros((ROWS, WIDTH), np.int32),
    }  # fmt: skip
    nodes = [
        LOOKUP,
        helper.make_node("Gather", ["again", "input_ids"], ["y"]),
        helper.make_node("Gather", ["quantized", "input_ids"], ["c"]),
        helper.make_node("Gather", ["more", "input_ids"], ["d"]),
        helper.make_node("Add", ["c", "d"], ["e"]),
        helper.make_node("Cast", ["e"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Sum", ["x", "y", "f"], ["logits"]),
    ]
    report = tie_model(save(tmp_path / "zeros.onnx", nodes, values), tmp_path / "fixed.onnx")
    assert report.merged == {"again": "table", "more": "quantized"}
    assert report.outputs[0].identical


def test_an_input_with_a_default_stays(tmp_path: Path) -> None:
    path = broken(tmp_path / "broken.onnx", "duplicate")
    model = onnx.load(path)
    info = helper.make_tensor_value_info("head", TensorProto.FLOAT, [ROWS, WIDTH])
    model.graph.input.append(info)
    onnx.save(model, path)
    report = tie_model(path, tmp_path / "fixed.onnx")
    assert report.merged == {}
    assert any("head: is table" in text for text in report.skipped)
    session = onnxruntime.InferenceSession(str(tmp_path / "fixed.onnx"))
    assert [value.name for value in session.get_overridable_initializers()] == ["head"]


def test_a_transpose_without_effect_and_an_empty_sequence(tmp_path: Path) -> None:
    w = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    for perm in ([0, 1], [1, 0]):
        nodes = [
            LOOKUP,
            helper.make_node("Transpose", ["head"], ["t"], perm=perm),
            helper.make_node("MatMul", ["x", "t"], ["logits"]),
        ]
        path = save(tmp_path / f"{perm[0]}.onnx", nodes, {"table": w, "head": w.copy()})
        report = tie_model(path, tmp_path / f"{perm[0]}.fixed.onnx")
        assert report.merged == {"head": "table"}
        for ids in (np.array([[3, 4]]), np.zeros((2, 0), np.int64)):
            before, after = (
                onnxruntime.InferenceSession(str(file)).run(None, {"input_ids": ids})[0]
                for file in (path, report.path)
            )
            np.testing.assert_allclose(after, before, atol=1e-5)


def test_the_right_one_of_two_dequantized_copies_is_near(tmp_path: Path) -> None:
    w = table()
    scale = np.float32(np.abs(w).max() / 127)
    stored = np.rint(w / scale).astype(np.int8)
    values = {"table": w, "quantized": stored, "one": np.float32(1), "scale": scale}
    nodes = [
        LOOKUP,
        helper.make_node("DequantizeLinear", ["quantized", "one"], ["large"]),
        helper.make_node("DequantizeLinear", ["quantized", "scale"], ["close"]),
        helper.make_node("Transpose", ["close"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["p"]),
        helper.make_node("Transpose", ["large"], ["u"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "u"], ["q"]),
        helper.make_node("Add", ["p", "q"], ["logits"]),
    ]
    path = save(tmp_path / "two.onnx", nodes, values)
    report = tie_model(path, tmp_path / "fixed.onnx", max_distance=0.05)
    assert report.merged_near == ("close",)
    assert report.outputs[0].relative_error < 1e-3


def test_nan_and_packed_types(tmp_path: Path) -> None:
    w = table()
    w[3] = np.nan
    four = np.random.default_rng(0).integers(-8, 8, (ROWS, WIDTH))
    packed = helper.make_tensor("four", TensorProto.INT4, four.shape, four)
    path = broken(tmp_path / "nan.onnx", "duplicate")
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(w, tensor.name))
    model.graph.initializer.append(packed)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1), "one"))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["four", "one"], ["wide"]))
    model.graph.output.append(helper.make_tensor_value_info("wide", TensorProto.FLOAT, None))
    onnx.save(model, path)
    report = tie_model(path, tmp_path / "fixed.onnx")
    assert report.merged == {"head": "table"}
    assert report.outputs[0].reason is None
    session = onnxruntime.InferenceSession(str(report.path))
    np.testing.assert_array_equal(session.run(["wide"], {"input_ids": IDS})[0], four)


def test_rows_outside_of_the_sample_are_compared_too(tmp_path: Path) -> None:
    """One row of a thousand differs: not a copy, although the rows compared first are equal."""
    w = np.random.default_rng(0).normal(size=(1000, WIDTH)).astype(np.float32)
    changed = w.copy()
    changed[501] += 1
    nodes = [LOOKUP, helper.make_node("MatMul", ["x", "head"], ["logits"])]
    values = {"table": w, "head": np.ascontiguousarray(changed.T)}
    path = save(tmp_path / "different.onnx", nodes, values)
    report = tie_model(path, tmp_path / "unmerged.onnx")
    assert (report.merged, report.merged_near) == ({}, ())
    np.testing.assert_array_equal(logits(report.path), logits(path))
    (near,) = report.near
    whole = np.linalg.norm(changed - w) / np.linalg.norm(w)
    assert near.distance == pytest.approx(whole, rel=1e-4)


def test_an_input_with_a_default_is_still_read(tmp_path: Path) -> None:
    path = broken(tmp_path / "broken.onnx", "duplicate")
    model = onnx.load(path)
    info = helper.make_tensor_value_info("head", TensorProto.FLOAT, [ROWS, WIDTH])
    model.graph.input.append(info)
    onnx.save(model, path)
    for distance in (0.0, 0.05):
        report = tie_model(path, tmp_path / f"{distance}.onnx", max_distance=distance)
        feeds = {"input_ids": IDS, "head": 2 * table()}
        before, after = (
            onnxruntime.InferenceSession(str(file)).run(None, feeds)[0]
            for file in (path, report.path)
        )
        np.testing.assert_allclose(after, before, atol=1e-4)


def test_outputs_with_infinities_and_integers_are_compared_too(tmp_path: Path) -> None:
    """Banned tokens have logits of minus infinity: no scale to hold an error against."""
    banned = np.zeros(ROWS, np.float32)
    banned[7] = -np.inf
    nodes = [
        LOOKUP,
        helper.make_node("MatMul", ["x", "head"], ["y"]),
        helper.make_node("Add", ["y", "banned"], ["logits"]),
    ]
    values = {"table": table(), "head": np.ascontiguousarray(table().T), "banned": banned}
    before = save(tmp_path / "before.onnx", nodes, values)
    wrong = save(tmp_path / "wrong.onnx", nodes, values | {"head": values["head"] + 0.05})
    assert compare_files(before, before, ROWS).identical
    assert compare_files(before, wrong, ROWS).relative_error > 1e-3
    first = helper.make_node("ArgMax", ["y"], ["logits"], axis=-1)
    integers = [*nodes[:2], first]
    right, other = (
        save(tmp_path / f"{name}.onnx", integers, values | {"head": head}, kind=TensorProto.INT64)
        for name, head in (("right", values["head"]), ("other", -values["head"]))
    )
    assert compare_files(right, right, ROWS).relative_error == 0
    assert compare_files(right, other, ROWS).relative_error == np.inf


def test_names_that_a_subgraph_uses_already(tmp_path: Path) -> None:
    """``val_0`` is what values without a name are called, by torch.onnx and here."""
    w = table()
    output = helper.make_tensor_value_info("branch_logits", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("MatMul", ["x", "branch_head"], ["val_0"]),
        helper.make_node("Tanh", ["val_0"], ["val_1"]),
        helper.make_node("Identity", ["val_1"], ["branch_logits"]),
    ]
    head = numpy_helper.from_array(np.ascontiguousarray(w.T), "branch_head")
    branch = helper.make_graph(nodes, "branch", [], [output], [head])
    graph = [
        LOOKUP,
        helper.make_node("MatMul", ["x", "head"], ["whole"]),
        helper.make_node("If", ["yes"], ["half"], then_branch=branch, else_branch=branch),
        helper.make_node("Add", ["whole", "half"], ["logits"]),
    ]
    values = {"table": w, "yes": np.array(True), "head": np.ascontiguousarray(w.T)}
    path = save(tmp_path / "names.onnx", graph, values)
    report = tie_model(path, tmp_path / "fixed.onnx")
    assert report.outputs[0].reason is None
    assert copies(report.path) == 1
    np.testing.assert_allclose(logits(report.path), logits(path), atol=1e-5)


def test_a_table_dequantized_after_the_first_user_of_its_copy(tmp_path: Path) -> None:
    w = table()
    scale = np.float32(np.abs(w).max() / 127)
    values = {"quantized": np.rint(w / scale).astype(np.int8), "scale": scale, "head": w.T.copy()}
    values |= {"ones": np.ones((1, 4, WIDTH), np.float32)}
    nodes = [
        helper.make_node("MatMul", ["ones", "head"], ["first"]),
        helper.make_node("DequantizeLinear", ["quantized", "scale"], ["dequantized"]),
        helper.make_node("Gather", ["dequantized", "input_ids"], ["x"]),
        helper.make_node("ReduceSum", ["x"], ["sum"]),
        helper.make_node("Add", ["first", "sum"], ["logits"]),
    ]
    path = save(tmp_path / "order.onnx", nodes, values)
    report = tie_model(path, tmp_path / "fixed.onnx", max_distance=0.05)
    assert report.merged_near == ("head",)
    defined: set[str] = {"input_ids"}
    graph = onnx.load(report.path).graph
    defined |= {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        assert defined.issuperset(node.input)
        defined |= set(node.output)
