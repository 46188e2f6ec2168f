"""SiLU and the tanh form of GELU become one operator."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import X, graph, leave, node, rewrite

from edgetie.passes.fuse_activation import FuseActivation


def test_silu_becomes_quick_gelu() -> None:
    model = graph([node("Sigmoid", ["x"], ["s"]), node("Mul", ["x", "s"], ["y"])], {})
    assert rewrite(model, FuseActivation(), x=X) == {"QuickGelu": 1}


def gelu(swap: bool, c: float = 0.044715) -> list:
    def binary(op: str, a: str, b: str, output: str) -> object:
        return node(op, [b, a] if swap else [a, b], [output])

    return [
        node("Pow", ["x", "three"], ["cube"]),
        binary("Mul", "cube", "c", "scaled"),
        binary("Add", "x", "scaled", "inner"),
        binary("Mul", "inner", "k", "argument"),
        node("Tanh", ["argument"], ["t"]),
        binary("Add", "t", "one", "p"),
        binary("Mul", "x", "half", "h"),
        binary("Mul", "h", "p", "y"),
    ]


CONSTANTS = {
    "three": np.float32(3), "c": np.float32(0.044715), "k": np.float32(np.sqrt(2 / np.pi)),
    "one": np.float32(1), "half": np.float32(0.5),
}  # fmt: skip


@pytest.mark.parametrize("swap", [False, True])
def test_gelu_becomes_fast_gelu_in_any_order(swap: bool) -> None:
    model = graph(gelu(swap), CONSTANTS)
    assert rewrite(model, FuseActivation(), x=X) == {"FastGelu": 1}
    assert not model.graph.initializers


def test_other_constants_are_another_function() -> None:
    leave(graph(gelu(False), {**CONSTANTS, "c": np.float32(0.05)}), FuseActivation())
    leave(graph(gelu(False), {**CONSTANTS, "half": np.float32(0.7)}), FuseActivation())


def test_a_sigmoid_that_something_else_reads_stays() -> None:
    nodes = [
        node("Sigmoid", ["x"], ["s"]),
        node("Mul", ["x", "s"], ["m"]),
        node("Add", ["m", "s"], ["y"]),
    ]
    leave(graph(nodes, {}), FuseActivation())
