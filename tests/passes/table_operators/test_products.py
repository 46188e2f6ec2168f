"""Products with a computed table are computed from products with the table."""

from __future__ import annotations

import numpy as np
import pytest
from computed_tables import (
    BY_ROWS,
    KEEPING_SHAPE,
    LINEAR,
    TABLE,
    Computed,
    after,
    moved,
    table_users,
)
from small_graphs import graph, leave, node, random

from edgetie.passes.move_table_operators import MoveTableOperators

FEW = {"Slice of few rows", "Gather of few rows"}


@pytest.mark.parametrize("name", LINEAR)
def test_products_with_rows(name: str) -> None:
    computed: Computed = LINEAR[name]
    use = [
        node("Transpose", ["result"], ["t"], perm=[1, 0]),
        node("MatMul", ["x", "t"], ["y"]),
    ]
    x = random(2, 3, computed.shape[1], seed=9)
    model = moved(computed, use, {"x": list(x.shape)}, x=x)
    assert table_users(model) == ({"Gather"} if name in FEW else {"MatMul"})
    assert list(model.graph.outputs[0].shape) == [2, 3, computed.shape[0]]


ROWS_ONLY = {
    "LpNormalization", "LayerNormalization", "ScatterND", "Gather of rows", "Gather of few rows",
    "Slice of rows backwards",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(LINEAR.keys() - ROWS_ONLY))
def test_products_with_columns(name: str) -> None:
    computed: Computed = LINEAR[name]
    x = random(2, 3, computed.shape[0], seed=9)
    use = [node("MatMul", ["x", "result"], ["y"])]
    model = moved(computed, use, {"x": list(x.shape)}, x=x)
    assert table_users(model) == {"MatMul"}


@pytest.mark.parametrize("name", ["Mul of rows", "Div of columns", "Slice of rows", "Identity"])
def test_a_table_on_the_left(name: str) -> None:
    computed: Computed = LINEAR[name]
    x = random(2, computed.shape[1], 3, seed=9)
    moved(computed, [node("MatMul", ["result", "x"], ["y"])], {"x": list(x.shape)}, x=x)


@pytest.mark.parametrize("name", BY_ROWS)
def test_what_is_not_linear_stays(name: str) -> None:
    computed: Computed = BY_ROWS[name]
    nodes = [*computed.nodes, node("MatMul", ["x", "result"], ["y"])]
    constants = {"table": TABLE} | computed.constants
    x = [2, 3, computed.shape[0]]
    shapes = {"result": list(computed.shape), "other": list(computed.shape)}
    model = graph(nodes, constants, {"x": x}, [2, 3, computed.shape[1]], shapes)
    step = MoveTableOperators()
    leave(model, step)
    assert len(step.skipped) == 1
    assert np.array_equal(model.graph.initializers["table"].const_value.numpy(), TABLE)


@pytest.mark.parametrize("first", sorted(KEEPING_SHAPE & LINEAR.keys()))
def test_two_operators(first: str) -> None:
    for second, last in LINEAR.items():
        computed = after(LINEAR[first], last)
        use = [
            node("Transpose", ["result"], ["t"], perm=[1, 0]),
            node("MatMul", ["x", "t"], ["y"]),
        ]
        x = random(2, 3, computed.shape[1], seed=9)
        model = moved(computed, use, {"x": list(x.shape)}, x=x)
        assert table_users(model) == ({"Gather"} if second in FEW else {"MatMul"})
