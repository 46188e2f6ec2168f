"""Rotated activations and weights give the same results, and spread outliers."""

from __future__ import annotations

import numpy as np
import pytest
from attention_graph import FEEDS, attention_graph
from onnx import TensorProto
from small_graphs import X, graph, node, random, rewrite

from edgetie.quantize.preprocess.linear_inputs import find_linear_inputs
from edgetie.quantize.preprocess.rotate import Rotate, hadamard, rotate_blocks, rotation_size


def test_hadamard_is_symmetric_and_orthogonal() -> None:
    for size in (2, 16, 64):
        np.testing.assert_allclose(hadamard(size) @ hadamard(size), np.eye(size), atol=1e-6)
        np.testing.assert_array_equal(hadamard(size), hadamard(size).T)


@pytest.mark.parametrize(("channels", "size"), [(576, 64), (96, 32), (50, 2), (35, 1)])
def test_size_is_the_largest_power_of_two(channels: int, size: int) -> None:
    shape = ["b", "s", channels]
    weight = {"w": random(channels, 64)}
    model = graph([node("MatMul", ["x", "w"], ["y"])], weight, {"x": shape}, ["b", "s", 64])
    assert rotation_size(find_linear_inputs(model)["x"]) == size
    step = Rotate(["x"])
    step.rewrite(model)
    assert step.changed == (size > 1)


def test_one_outlier_is_spread_over_its_block() -> None:
    array = np.zeros((1, 128), np.float32)
    array[0, 3] = 8
    rotated = rotate_blocks(array.copy(), hadamard(64))
    np.testing.assert_allclose(np.abs(rotated[0, :64]), 1.0, rtol=1e-6)
    assert not rotated[0, 64:].any()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_values_are_rotated_without_a_node(packed: bool, bias: bool) -> None:
    model = attention_graph(packed=packed, bias=bias)
    nodes, weight = len(model.graph), model.graph.initializers["out"].const_value.numpy().copy()  # type: ignore[union-attr]
    rotate = Rotate(["sums"])
    rewrite(model, rotate, **FEEDS)
    assert (rotate.changed, len(model.graph)) == (1, nodes)
    assert not np.allclose(model.graph.initializers["out"].const_value.numpy(), weight)  # type: ignore[union-attr]


def test_an_activation_is_rotated_once_for_all_its_readers() -> None:
    nodes = [
        node("MatMul", ["x", "a"], ["p"]),
        node("MatMul", ["x", "b"], ["q"]),
        node("Add", ["p", "q"], ["y"]),
    ]
    model = graph(nodes, {"a": random(64, 64), "b": random(64, 64, seed=1)})
    operators = rewrite(model, Rotate(["x"]), x=X)
    assert operators == {"Reshape": 2, "MatMul": 3, "Add": 1}


def test_a_tied_embedding_stays_one() -> None:
    nodes = [
        node("Gather", ["table", "ids"], ["e"]),
        node("Relu", ["e"], ["h"]),
        node("Transpose", ["table"], ["t"], perm=[1, 0]),
        node("MatMul", ["h", "t"], ["y"]),
    ]
    shape = ["b", "s"]
    model = graph(
        nodes, {"table": random(40, 64)}, {"ids": shape}, [*shape, 40],
        shapes={"h": [*shape, 64], "e": [*shape, 64]}, types={"ids": TensorProto.INT64},
    )  # fmt: skip
    operators = rewrite(model, Rotate(["h"]), ids=np.array([[1, 5, 39]]))
    assert operators["Gather"] == 1
    assert operators["MatMul"] == 3  # the head, its rotation, and that of the gathered rows
    large = [v for v in model.graph.initializers.values() if v.shape == [40, 64]]
    assert len(large) == 1
