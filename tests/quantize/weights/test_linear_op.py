"""Linear operators in the three ways that graphs have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from small_graphs import graph, node, random

from edgetie.quantize.weights.linear_op import (
    find_linear_ops,
    is_gather,
    is_weight_matrix,
    match_linear_op,
)

W = random(96, 64)
LINEAR_OPS = {
    "MatMul(x, W)": [node("MatMul", ["x", "w"], ["y"])],
    "MatMul(x, Transpose(W))": [
        node("Transpose", ["w"], ["t"], perm=[1, 0]),
        node("MatMul", ["x", "t"], ["y"]),
    ],
    "Transpose(MatMul(W, Transpose(x)))": [
        node("Transpose", ["x"], ["t"], perm=[1, 0]),
        node("MatMul", ["w", "t"], ["p"]),
        node("Transpose", ["p"], ["y"], perm=[1, 0]),
    ],
}


def model_of(nodes: list[Any], w: Any = W, **constants: Any) -> ir.Model:
    shapes = {"x": ["tokens", 64]}
    return graph(
        nodes, {"w": w, **constants}, shapes, ["tokens", 96], types={"i": TensorProto.INT64}
    )


def matmul(model: ir.Model) -> ir.Node:
    return next(each for each in model.graph if each.op_type == "MatMul")


@pytest.mark.parametrize("kind", LINEAR_OPS)
def test_all_ways_give_the_same_weight_input_and_output(kind: str) -> None:
    transposed = kind == "MatMul(x, W)"
    model = model_of(LINEAR_OPS[kind], W.T.copy() if transposed else W)
    linear_op = match_linear_op(matmul(model))
    assert linear_op is not None
    assert (linear_op.weight.name, linear_op.x.name, linear_op.output.name) == ("w", "x", "y")
    assert linear_op.transposed is transposed
    assert linear_op.weight_on_left is kind.startswith("Transpose(")
    assert linear_op.in_channels == 64
    assert linear_op.is_only_reader
    np.testing.assert_array_equal(linear_op.read_weight(), W)
    assert find_linear_ops(linear_op.weight) == [linear_op]


@pytest.mark.parametrize(
    "w",
    [random(3, 3), W.T.astype(np.float64), random(2, 64, 96)],
    ids=["small", "float64", "three axes"],
)
def test_other_constants_are_no_weights(w: np.ndarray) -> None:
    model = model_of(LINEAR_OPS["MatMul(x, W)"], w)
    assert not is_weight_matrix(model.graph.initializers["w"])
    assert match_linear_op(matmul(model)) is None


def test_constants_of_rotations_are_no_weights() -> None:
    model = graph([node("MatMul", ["x", "rotate.h"], ["y"])], {"rotate.h": random(64, 64)})
    assert match_linear_op(matmul(model)) is None


def test_a_transpose_of_other_axes_does_not_match() -> None:
    nodes = [
        node("Transpose", ["w"], ["t"], perm=[0, 1]),
        node("MatMul", ["x", "t"], ["y"]),
    ]
    assert match_linear_op(matmul(model_of(nodes, W.T.copy()))) is None


def test_a_result_that_is_not_transposed_back_does_not_match() -> None:
    nodes = LINEAR_OPS["Transpose(MatMul(W, Transpose(x)))"][:2]
    assert match_linear_op(matmul(model_of([*nodes, node("Relu", ["p"], ["y"])]))) is None


def test_gathers_may_read_an_embedding_and_nothing_else() -> None:
    nodes = LINEAR_OPS["MatMul(x, Transpose(W))"]
    for extra, expected in (
        (node("Gather", ["w", "i"], ["rows"]), True),
        (node("Gather", ["w", "i"], ["columns"], axis=1), False),
        (node("Relu", ["w"], ["other"]), False),
        (node("Relu", ["t"], ["other"]), False),
    ):
        model = model_of([*nodes, extra], i=np.array([1]))
        linear_op = match_linear_op(matmul(model))
        assert linear_op is not None
        assert linear_op.is_only_reader is expected
        assert len(find_linear_ops(linear_op.weight)) == 1
    model = model_of([*LINEAR_OPS["MatMul(x, W)"], extra := node("Gather", ["w", "i"], ["r"])],
                     W.T.copy(), i=np.array([1]))  # fmt: skip
    assert not match_linear_op(matmul(model)).is_only_reader  # type: ignore[union-attr]
    gather = next(each for each in model.graph if each.op_type == extra.op_type)
    assert is_gather(gather, 0)
    assert not is_gather(gather, 1)


def test_all_readers_of_a_weight_are_listed() -> None:
    nodes = [
        node("Transpose", ["w"], ["t"], perm=[1, 0]),
        node("MatMul", ["x", "t"], ["a"]),
        node("MatMul", ["b", "t"], ["c"]),
        node("Relu", ["x"], ["b"]),
        node("Add", ["a", "c"], ["y"]),
    ]
    model = model_of(nodes)
    linear_ops = find_linear_ops(model.graph.initializers["w"])
    assert [each.x.name for each in linear_ops] == ["x", "b"]
    assert not any(each.is_only_reader for each in linear_ops)
