"""What all uses of a weight have in common becomes a part of it."""

from __future__ import annotations

import numpy as np
from small_graphs import SHAPE, WIDTH, X, graph, leave, node, random, rewrite, run

from edgetie.passes.base import run_passes
from edgetie.passes.fold_weights import FoldWeights

TABLE = random(WIDTH, WIDTH)
MATRIX = [WIDTH, WIDTH]
PRODUCTS = [node("MatMul", ["x", "w"], ["m"]), node("MatMul", ["m", "w"], ["y"])]


def test_a_scaled_and_normalized_table() -> None:
    nodes = [
        node("ReduceL2", ["table", "last"], ["norms"], keepdims=1),
        node("Div", ["table", "norms"], ["rows"]),
        node("Mul", ["rows", "eight"], ["w"]),
        *PRODUCTS,
    ]
    constants = {"table": TABLE, "last": np.array([-1]), "eight": np.float32(8)}
    model = graph(nodes, constants, shapes={"w": MATRIX, "rows": MATRIX, "norms": [WIDTH, 1]})
    assert rewrite(model, FoldWeights(), x=X) == {"MatMul": 2}
    (name, value), *others = model.graph.initializers.items()
    assert (name, others) == ("table", [])
    norms = np.linalg.norm(TABLE, axis=1, keepdims=True)
    np.testing.assert_allclose(value.const_value.numpy(), 8 * TABLE / norms, rtol=1e-5)


def test_a_low_rank_update() -> None:
    nodes = [
        node("MatMul", ["a", "b"], ["delta"]),
        node("Add", ["table", "delta"], ["w"]),
        *PRODUCTS,
    ]
    constants = {"table": TABLE, "a": random(WIDTH, 16), "b": random(16, WIDTH)}
    model = graph(nodes, constants, shapes={"w": MATRIX, "delta": MATRIX})
    assert rewrite(model, FoldWeights(), x=X) == {"MatMul": 2}
    assert list(model.graph.initializers) == ["table"]


def test_a_weight_with_other_uses_stays() -> None:
    nodes = [
        node("Neg", ["table"], ["w"]),
        node("MatMul", ["x", "w"], ["m"]),
        node("MatMul", ["m", "table"], ["y"]),
    ]
    leave(graph(nodes, {"table": TABLE}, shapes={"w": MATRIX}), FoldWeights())
    nodes = [node("Neg", ["table"], ["w"]), *PRODUCTS]
    leave(graph(nodes, {"table": TABLE}, shapes={"w": MATRIX}), FoldWeights(["table"]))


def test_a_result_that_is_larger_stays() -> None:
    nodes = [node("MatMul", ["a", "b"], ["w"]), *PRODUCTS]
    constants = {"a": random(WIDTH, 16), "b": random(16, WIDTH)}
    leave(graph(nodes, constants, shapes={"w": MATRIX}), FoldWeights())


def test_a_vector_becomes_a_constant() -> None:
    nodes = [
        node("ReduceMean", ["table", "first"], ["mean"], keepdims=0),
        node("MatMul", ["x", "table"], ["m"]),
        node("Add", ["m", "mean"], ["y"]),
    ]
    constants = {"table": TABLE, "first": np.array([0])}
    model = graph(nodes, constants, shapes={"mean": [WIDTH], "m": SHAPE})
    before = run(model, x=X)
    run_passes(model, [], [FoldWeights()])
    assert [each.op_type for each in model.graph] == ["MatMul", "Add"]
    np.testing.assert_allclose(run(model, x=X), before, rtol=1e-4, atol=1e-5)
    folded = model.graph.initializers["mean.folded"].const_value
    np.testing.assert_allclose(folded.numpy(), TABLE.mean(axis=0), rtol=1e-4, atol=1e-6)
