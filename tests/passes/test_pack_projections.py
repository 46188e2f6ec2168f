"""Projections of one input become one MatMul and a Split."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto
from small_graphs import SHAPE, WIDTH, X, graph, leave, node, random, rewrite

from edgetie.passes.pack_projections import PackProjections


@pytest.mark.parametrize("biased", [False, True])
def test_projections_of_one_input_become_one(biased: bool) -> None:
    nodes, constants = [], {}
    for seed, name in enumerate("abc"):
        nodes.append(node("MatMul", ["x", f"w{name}"], [f"p{name}"]))
        constants[f"w{name}"] = random(WIDTH, WIDTH, seed=seed)
        if biased:
            nodes.append(node("Add", [f"p{name}", f"b{name}"], [f"r{name}"]))
            constants[f"b{name}"] = random(WIDTH, seed=seed + 10)
    letter = "r" if biased else "p"
    nodes += [
        node("Mul", [f"{letter}a", f"{letter}b"], ["m"]),
        node("Sub", ["m", f"{letter}c"], ["y"]),
    ]
    shapes = {f"{kind}{name}": SHAPE for kind in "pr" for name in "abc"}
    model = graph(nodes, constants, shapes=shapes)
    expected = {"MatMul": 1, "Split": 1, "Mul": 1, "Sub": 1} | ({"Add": 1} if biased else {})
    assert rewrite(model, PackProjections(), x=X) == expected
    sizes = [list(value.shape) for value in model.graph.initializers.values()]
    assert [WIDTH, 3 * WIDTH] in sizes
    assert len(sizes) == 2 + biased


def test_projections_with_and_without_bias_stay() -> None:
    nodes = [
        node("MatMul", ["x", "a"], ["p"]),
        node("MatMul", ["x", "b"], ["q"]),
        node("Add", ["p", "bias"], ["r"]),
        node("Mul", ["q", "r"], ["y"]),
    ]
    constants = {"a": random(WIDTH, WIDTH), "b": random(WIDTH, WIDTH), "bias": random(WIDTH)}
    leave(graph(nodes, constants), PackProjections())


def test_a_weight_with_two_uses_stays() -> None:
    nodes = [
        node("MatMul", ["x", "a"], ["p"]),
        node("MatMul", ["x", "b"], ["q"]),
        node("MatMul", ["p", "b"], ["r"]),
        node("Mul", ["q", "r"], ["y"]),
    ]
    constants = {"a": random(WIDTH, WIDTH), "b": random(WIDTH, WIDTH, seed=1)}
    leave(graph(nodes, constants), PackProjections())


def test_a_weight_that_another_graph_reads_stays() -> None:
    nodes = [
        node("MatMul", ["x", "text.a"], ["p"]),
        node("MatMul", ["x", "text.b"], ["q"]),
        node("Mul", ["p", "q"], ["y"]),
    ]
    constants = {"text.a": random(WIDTH, WIDTH), "text.b": random(WIDTH, WIDTH, seed=1)}
    leave(graph(nodes, constants), PackProjections([("vision.b", "text.b")]))


def test_attention_reads_packed_queries_keys_and_values() -> None:
    nodes = [node("MatMul", ["x", f"w{name}"], [name]) for name in "qkv"]
    nodes.append(
        node(
            "GroupQueryAttention", ["q", "k", "v", "", "", "lengths", "total"],
            ["y", "present_key", "present_value"], domain="com.microsoft",
            num_heads=4, kv_num_heads=4,
        )
    )  # fmt: skip
    constants = {f"w{name}": random(WIDTH, WIDTH, seed=i) / 8 for i, name in enumerate("qkv")}
    constants |= {"lengths": np.array([4, 4], np.int32), "total": np.array(5, np.int32)}
    shapes = dict.fromkeys("qkv", SHAPE)
    model = graph(nodes, constants, shapes=shapes, types={"lengths": TensorProto.INT32})
    assert rewrite(model, PackProjections(), x=X) == {"MatMul": 1, "GroupQueryAttention": 1}
    attention = model.graph[-1]
    assert [value is None for value in attention.inputs[:3]] == [False, True, True]
