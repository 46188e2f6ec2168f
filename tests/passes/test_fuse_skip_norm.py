"""A residual sum and its norm become one operator."""

from __future__ import annotations

import pytest
from small_graphs import SHAPE, WIDTH, X, graph, leave, node, random, rewrite

from edgetie.passes.fuse_skip_norm import FuseSkipNorm

Z = random(2, 5, WIDTH, seed=3)


@pytest.mark.parametrize("norm", ["RMSNormalization", "LayerNormalization"])
def test_the_fused_norm_returns_the_sum_too(norm: str) -> None:
    constants = {"weight": random(WIDTH)}
    if norm == "LayerNormalization":
        constants["bias"] = random(WIDTH, seed=1)
    model = graph(
        [
            node("Add", ["x", "z"], ["sum"]),
            node(norm, ["sum", *constants], ["normed"], axis=-1, epsilon=1e-5, name="norm"),
            node("Mul", ["normed", "sum"], ["y"]),
        ],
        constants,
        {"x": SHAPE, "z": SHAPE},
        shapes={"sum": SHAPE},
    )
    operators = rewrite(model, FuseSkipNorm(), x=X, z=Z)
    simplified = "Simplified" if norm == "RMSNormalization" else ""
    assert operators == {f"Skip{simplified}LayerNormalization": 1, "Mul": 1}
    assert set(model.graph.initializers) == set(constants)


def test_a_use_of_the_sum_before_the_norm_stays_in_order() -> None:
    model = graph(
        [
            node("Add", ["x", "z"], ["sum"]),
            node("Tanh", ["sum"], ["early"]),
            node("RMSNormalization", ["sum", "weight"], ["normed"], axis=-1, name="norm"),
            node("Mul", ["normed", "early"], ["y"]),
        ],
        {"weight": random(WIDTH)},
        {"x": SHAPE, "z": SHAPE},
        shapes={"sum": SHAPE},
    )
    operators = rewrite(model, FuseSkipNorm(), x=X, z=Z)
    assert operators == {"SkipSimplifiedLayerNormalization": 1, "Tanh": 1, "Mul": 1}


def test_a_sum_that_broadcasts_stays() -> None:
    model = graph(
        [
            node("Add", ["x", "z"], ["sum"]),
            node("RMSNormalization", ["sum", "weight"], ["y"], axis=-1, name="norm"),
        ],
        {"weight": random(WIDTH)},
        {"x": SHAPE, "z": [WIDTH]},
        shapes={"sum": SHAPE},
    )
    leave(model, FuseSkipNorm())
