"""Copies that are nearly equal to a table are found, measured and merged."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from small_graphs import WIDTH, graph, node, random, run

from edgetie.passes.base import run_passes
from edgetie.passes.merge_near_duplicates import MergeNearDuplicates, near_copies

ROWS = 96
TABLE = random(ROWS, WIDTH)
NOISE = random(ROWS, WIDTH, seed=1) * 0.01


def model_of(constants: dict[str, np.ndarray], nodes: list) -> ir.Model:
    return graph(
        [node("Gather", ["table", "ids"], ["x"]), *nodes],
        {"table": TABLE, **constants},
        {"ids": ["batch", "sequence"]},
        ["batch", "sequence", ROWS],
        types={"ids": TensorProto.INT64},
    )


def test_a_transposed_near_copy_is_measured_and_merged() -> None:
    head = np.ascontiguousarray((TABLE + NOISE).T)
    model = model_of({"head": head}, [node("MatMul", ["x", "head"], ["y"])])
    (copy,) = near_copies(model)
    assert (copy.name, copy.table, copy.transposed) == ("head", "table", True)
    distance = np.linalg.norm(NOISE) / np.linalg.norm(TABLE)
    assert copy.distance == pytest.approx(distance, rel=1e-4)
    ids = np.array([[1, 2, 95]])
    before = run(model, ids=ids)
    step = MergeNearDuplicates([copy])
    step(model)
    assert step.merged == ["head"]
    assert list(model.graph.initializers) == ["table"]
    after = run(model, ids=ids)
    assert 0 < np.abs(after - before).max() < 0.1 * np.abs(before).max()
    np.testing.assert_allclose(after, TABLE[ids] @ TABLE.T, atol=1e-4)


def test_an_unrelated_matrix_is_no_copy() -> None:
    head = random(WIDTH, ROWS, seed=5)
    assert near_copies(model_of({"head": head}, [node("MatMul", ["x", "head"], ["y"])])) == []


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_dequantized_copy_is_near(axis: int | None) -> None:
    largest = np.abs(TABLE).max(axis=None if axis is None else 1 - axis)
    scale = (largest / 127).astype(np.float32)
    column = scale if axis is None else np.expand_dims(scale, 1 - axis)
    quantized = (np.rint(TABLE / column) + 128).astype(np.uint8)
    zero = np.full(scale.shape, 128, np.uint8)
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        node("DequantizeLinear", ["quantized", "scale", "zero"], ["wide"], **attributes),
        node("Transpose", ["wide"], ["head"], perm=[1, 0]),
        node("MatMul", ["x", "head"], ["y"]),
    ]
    model = model_of({"quantized": quantized, "scale": scale, "zero": zero}, nodes)
    (copy,) = near_copies(model)
    assert copy.name == "wide"
    expected = (quantized.astype(np.float32) - 128) * column
    distance = np.linalg.norm(expected - TABLE) / np.linalg.norm(TABLE)
    assert copy.distance == pytest.approx(distance, rel=1e-4)
    MergeNearDuplicates([copy])(model)
    assert list(model.graph.initializers) == ["table"]


@pytest.mark.parametrize("dtype", [np.float16, ir.DataType.BFLOAT16.numpy()])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_copy_of_16_bits_is_the_rounded_table(dtype: type, transposed: bool) -> None:
    rounded = (TABLE.T if transposed else TABLE).astype(dtype)
    nodes = [
        node("Cast", ["half"], ["wide"], to=TensorProto.FLOAT),
        node("Transpose", ["wide"], ["head"], perm=[1, 0]),
        node("MatMul", ["x", "wide" if transposed else "head"], ["y"]),
    ]
    model = model_of({"half": np.ascontiguousarray(rounded)}, nodes)
    (copy,) = near_copies(model)
    assert (copy.name, copy.transposed) == ("half", transposed)
    assert copy.rounding == np.dtype(dtype).name
    assert 0 < copy.distance < 0.01
    step = MergeNearDuplicates([copy])
    run_passes(model, [], [step])
    assert list(model.graph.initializers) == ["table"]
    ids = np.array([[1, 2, 95]])
    np.testing.assert_allclose(run(model, ids=ids), TABLE[ids] @ TABLE.T, atol=1e-4)


def test_a_copy_that_is_read_in_16_bits_becomes_a_cast() -> None:
    nodes = [
        node("Cast", ["x"], ["x16"], to=TensorProto.FLOAT16),
        node("MatMul", ["x16", "head"], ["y16"]),
        node("Cast", ["y16"], ["y"], to=TensorProto.FLOAT),
    ]
    model = model_of({"head": np.ascontiguousarray(TABLE.T.astype(np.float16))}, nodes)
    ids = np.array([[1, 2, 95]])
    before = run(model, ids=ids)
    (copy,) = near_copies(model)
    run_passes(model, [], [MergeNearDuplicates([copy])])
    assert list(model.graph.initializers) == ["table"]
    np.testing.assert_array_equal(run(model, ids=ids), before)  # the Cast rounds alike


def test_a_table_that_was_rounded_itself() -> None:
    nodes = [node("Transpose", ["head"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["y"])]
    model = model_of({"head": TABLE, "table": TABLE.astype(np.float16).astype(np.float32)}, nodes)
    (copy,) = near_copies(model)
    assert (copy.name, copy.rounding) == ("head", "float16")
    other = model_of({"head": TABLE, "table": TABLE + NOISE}, nodes)
    assert [copy.rounding for copy in near_copies(other)] == [None]
