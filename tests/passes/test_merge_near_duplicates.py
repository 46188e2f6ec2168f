"""Copies that are nearly equal to a table are found, measured and merged."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from small_graphs import WIDTH, graph, node, random, run

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
