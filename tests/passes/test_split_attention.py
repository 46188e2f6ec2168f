"""Attention becomes a projection and a MultiHeadAttention."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from small_graphs import WIDTH, X, graph, leave, node, random, rewrite

from edgetie.passes.split_attention import SplitAttention

MASK = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], np.int32)


def attention(
    inputs: list[str], mask: list[int] | None = None, opset: int = 17, **attributes: Any
) -> ir.Model:
    constants = {"w": random(WIDTH, 3 * WIDTH) / 8, "b": random(3 * WIDTH, seed=1)}
    feeds = {"x": [2, 5, WIDTH]} | ({"mask": mask} if mask else {})
    attributes = {"num_heads": 4} | attributes
    nodes = [node("Attention", inputs, ["y"], domain="com.microsoft", **attributes)]
    types = {"mask": TensorProto.INT32}
    shape = [2, 5, attributes.get("qkv_hidden_sizes", [WIDTH])[-1]]
    return graph(nodes, constants, feeds, shape, types=types, opset=opset)


@pytest.mark.parametrize(
    ("inputs", "mask", "attributes"),
    [
        (["x", "w", "b"], None, {}),
        (["x", "w", ""], None, {"scale": 0.1}),
        (["x", "w", "b"], None, {"unidirectional": 1}),
        (["x", "w", "b", "mask"], MASK, {}),
        (["x", "w", "b", "mask"], MASK, {"mask_filter_value": -5.0}),
        (["x", "w", "b", "mask"], MASK.sum(axis=1, dtype=np.int32), {}),
        (["x", "w", "b", "mask"], MASK[:, None] * np.ones((1, 5, 1), np.int32), {}),
        (["x", "w", "b"], None, {"qkv_hidden_sizes": [48, 48, 96]}),
    ],
    ids=["plain", "scale", "causal", "mask", "filter", "lengths", "for each token", "sizes"],
)
@pytest.mark.parametrize("opset", [12, 17])
def test_attention(
    inputs: list[str], mask: np.ndarray | None, attributes: dict[str, Any], opset: int
) -> None:
    feeds = {} if mask is None else {"mask": mask}
    shape = None if mask is None else list(mask.shape)
    model = attention(inputs, shape, opset, **attributes)
    operators = rewrite(model, SplitAttention(), x=X, **feeds)
    assert operators["MatMul"] == operators["MultiHeadAttention"] == 1
    assert not operators["Attention"]


def test_lengths_are_those_of_the_inputs_batch() -> None:
    """After a fused operator, the shape of the activation is not known."""
    model = attention(["x", "w", "b", "mask"], [2])
    kind = ir.TensorType(ir.DataType.INT64)
    model.graph.inputs.append(ir.Value(name="ids", shape=ir.Shape([2, 5]), type=kind))
    x = ir.node("Identity", [model.graph.inputs[0]])
    attend = model.graph.node(0)
    model.graph.insert_before(attend, x)
    attend.replace_input_with(0, x.outputs[0])
    feeds = {"x": X, "mask": np.array([4, 2], np.int32), "ids": np.zeros((2, 5), np.int64)}
    assert rewrite(model, SplitAttention(), **feeds)["MultiHeadAttention"] == 1


def test_other_masks_stay() -> None:
    model = attention(["x", "w", "b", "mask"], [4])
    before = [each.op_type for each in model.graph]
    SplitAttention()(model)
    assert [each.op_type for each in model.graph] == before


def test_a_weight_that_is_an_input_stays() -> None:
    nodes = [node("Attention", ["x", "w"], ["y"], domain="com.microsoft", num_heads=4)]
    inputs = {"x": [2, 5, WIDTH], "w": [WIDTH, 3 * WIDTH]}
    leave(graph(nodes, {}, inputs, [2, 5, WIDTH]), SplitAttention())
