"""Activations that only linear operators read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from small_graphs import SHAPE, X, graph, node, random, run

from edgetie.quantize.preprocess.linear_inputs import (
    find_linear_inputs,
    insert_after,
    transform_weight,
)

MATMULS = [
    node("Sigmoid", ["x"], ["a"]),
    node("MatMul", ["a", "w"], ["b"]),
    node("MatMul", ["a", "v"], ["c"]),
    node("Add", ["b", "c"], ["y"]),
]
WEIGHTS = {"w": random(64, 64), "v": random(64, 64, seed=1)}


def model_of(nodes: list[Any], **constants: Any) -> ir.Model:
    return graph(nodes, WEIGHTS | constants, shapes={"a": SHAPE}, types={"s": TensorProto.INT64})


def test_activations_and_their_readers_are_found_in_order() -> None:
    linear_inputs = find_linear_inputs(
        model_of([*MATMULS[:3], node("MatMul", ["b", "u"], ["d"]), node("Add", ["c", "d"], ["y"])],
                 u=random(64, 64))
    )  # fmt: skip
    assert list(linear_inputs) == ["a", "b"]
    first = linear_inputs["a"]
    assert [each.weight.name for each in first.linear_ops] == ["w", "v"]
    assert first.channels == 64


def test_a_shape_may_read_the_activation() -> None:
    nodes = [
        *MATMULS[:3],
        node("Shape", ["a"], ["s"]),
        node("Add", ["b", "c"], ["sum"]),
        node("Reshape", ["sum", "s"], ["y"]),
    ]
    assert list(find_linear_inputs(model_of(nodes))) == ["a"]


@pytest.mark.parametrize(
    "reader",
    [
        node("Relu", ["a"], ["other"]),
        node("MatMul", ["a", "x"], ["other"]),
        node("MatMul", ["x", "a"], ["other"]),
        node("Reshape", ["a", "flat"], ["other"]),
        node("MatMul", ["a", "w"], ["other"]),
    ],
    ids=["Relu", "MatMul left", "MatMul right", "Reshape", "weight read twice"],
)
def test_any_other_reader_excludes_the_activation(reader: Any) -> None:
    nodes = [*MATMULS[:3], reader, node("Relu", ["other"], ["z"]), MATMULS[3]]
    assert "a" not in find_linear_inputs(model_of(nodes, flat=np.array([-1, 64])))


def test_graph_outputs_are_excluded() -> None:
    nodes = [node("Sigmoid", ["x"], ["y"]), node("MatMul", ["y", "w"], ["z"])]
    assert find_linear_inputs(model_of(nodes)) == {}


def test_a_flattened_input_of_a_head_is_the_activation_before() -> None:
    nodes = [
        node("Sigmoid", ["x"], ["a"]),
        node("Reshape", ["a", "flat"], ["f"]),
        node("Transpose", ["f"], ["t"], perm=[1, 0]),
        node("MatMul", ["w", "t"], ["p"]),
        node("Transpose", ["p"], ["q"], perm=[1, 0]),
        node("Reshape", ["q", "back"], ["y"]),
    ]
    constants = {"flat": np.array([-1, 64]), "back": np.array([2, -1, 64])}
    linear_inputs = find_linear_inputs(model_of(nodes, **constants))
    assert list(linear_inputs) == ["a"]
    assert linear_inputs["a"].linear_ops[0].weight_on_left


def test_weights_are_transformed_when_they_are_read() -> None:
    model = model_of(MATMULS)
    before = run(model, x=X)
    calls = []

    def double(array: np.ndarray) -> np.ndarray:
        calls.append(array.shape)
        return array * 2

    for name in WEIGHTS:
        transform_weight(model.graph.initializers[name], double)
    assert calls == []
    np.testing.assert_allclose(run(model, x=X), 2 * before, rtol=1e-5)
    assert calls == [(64, 64)] * 2


def test_nodes_are_inserted_before_all_other_users() -> None:
    model = graph([node("Sigmoid", ["x"], ["a"]), node("Relu", ["a"], ["y"])], {})
    model.graph.outputs.append(model.graph.node(0).outputs[0])
    sigmoid = model.graph.node(0)
    insert_after(sigmoid, negate := ir.node("Neg", [sigmoid.outputs[0]]))
    assert [each.op_type for each in model.graph] == ["Sigmoid", "Neg", "Relu"]
    assert model.graph.node(2).inputs[0] is negate.outputs[0]
    assert [value.name for value in model.graph.outputs] == ["y", "a"]
    assert not run(model, x=X).any()  # Relu of what is negative
