"""The columns of a projection that compute attention's values."""

from __future__ import annotations

import pytest
from attention_graph import attention_graph
from small_graphs import graph, node, random

from edgetie.quantize.preprocess.linear_inputs import find_linear_inputs
from edgetie.quantize.preprocess.value_projection import (
    find_value_projection,
    projection_parameters,
)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("packed", "weight", "start"), [(False, "v", 0), (True, "qkv", 96)])
def test_values_are_found(packed: bool, weight: str, start: int, bias: bool) -> None:
    model = attention_graph(packed=packed, bias=bias)
    values = find_value_projection(find_linear_inputs(model)["sums"])
    assert values is not None
    names = [f"{weight}.bias", weight] if bias else [weight]
    assert [value.name for value in values.parameters] == names
    assert (values.start, values.head_size) == (start, 16)


def test_other_inputs_have_none() -> None:
    model = graph([node("MatMul", ["x", "w"], ["y"])], {"w": random(64, 64)})
    assert find_value_projection(find_linear_inputs(model)["x"]) is None


def test_a_weight_that_two_nodes_read_is_not_a_projection_of_its_own() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Relu", ["a"], ["r"]),
        node("MatMul", ["r", "w"], ["y"]),
    ]
    model = graph(nodes, {"w": random(64, 64)})
    assert projection_parameters(model.graph.node(0).outputs[0]) == []
    alone = graph(
        [nodes[0], node("Relu", ["a"], ["y"])], {"w": random(64, 32)}, output=["b", "s", 32]
    )
    parameters = projection_parameters(alone.graph.node(0).outputs[0])
    assert [(value.name, shape) for value, shape in parameters] == [("w", (64, 32))]
    assert projection_parameters(alone.graph.outputs[0]) == []
