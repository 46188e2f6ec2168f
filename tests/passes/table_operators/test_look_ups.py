"""Rows of a computed table are computed from rows of the table."""

from __future__ import annotations

import numpy as np
import pytest
from computed_tables import BY_ROWS, KEEPING_SHAPE, LINEAR, Computed, after, moved, table_users
from small_graphs import node

OPERATORS = LINEAR | BY_ROWS
MIXED = "a mixture of rows"  # each row of the result is one of all rows


@pytest.mark.parametrize("name", sorted(OPERATORS.keys() - {MIXED}))
def test_rows(name: str) -> None:
    computed: Computed = OPERATORS[name]
    rows = computed.shape[0]
    ids = np.array([[0, 1, -1], [rows - 1, rows // 2, -rows]])
    model = moved(computed, [node("Gather", ["result", "ids"], ["y"])], {"ids": [2, 3]}, ids=ids)
    assert table_users(model) == {"Gather"}
    assert list(model.graph.outputs[0].shape) == [2, 3, computed.shape[1]]


@pytest.mark.parametrize("name", ["Mul of rows", "Sub of rows", "Slice of columns", "Neg"])
def test_columns(name: str) -> None:
    computed: Computed = LINEAR[name]
    ids = np.array([[0, 1, -1], [20, 3, 3]])
    use = [node("Gather", ["result", "ids"], ["y"], axis=1)]
    assert table_users(moved(computed, use, {"ids": [2, 3]}, ids=ids)) == {"Gather"}


def test_one_row() -> None:
    use = [node("Gather", ["result", "ids"], ["y"])]
    moved(LINEAR["Mul of rows"], use, {"ids": []}, ids=np.array(3))


def test_a_mixture_of_rows_is_a_product() -> None:
    use = [node("Gather", ["result", "ids"], ["y"])]
    model = moved(LINEAR[MIXED], use, {"ids": [2]}, ids=np.array([3, -1]))
    assert table_users(model) == {"MatMul"}


@pytest.mark.parametrize("first", sorted(KEEPING_SHAPE))
def test_two_operators(first: str) -> None:
    for second in sorted(OPERATORS.keys() - {MIXED}):
        computed = after(OPERATORS[first], OPERATORS[second])
        ids = np.array([[0, 1, -1], [computed.shape[0] - 1, 2, -2]])
        use = [node("Gather", ["result", "ids"], ["y"])]
        assert table_users(moved(computed, use, {"ids": [2, 3]}, ids=ids)) == {"Gather"}
