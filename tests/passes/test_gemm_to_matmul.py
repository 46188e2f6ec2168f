"""Gemm and transposed weights become MatMul over ``W[in, out]``."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import SHAPE, WIDTH, X, graph, leave, node, random, rewrite

from edgetie.passes.gemm_to_matmul import GemmToMatMul


def test_gemm_between_reshapes_becomes_one_matmul() -> None:
    weight, bias = random(WIDTH, WIDTH), random(WIDTH, seed=1)
    model = graph(
        [
            node("Reshape", ["x", "flat"], ["x2"]),
            node("Gemm", ["x2", "w", "b"], ["y2"], transB=1),
            node("Reshape", ["y2", "whole"], ["y"]),
        ],
        {"w": weight, "b": bias, "flat": [-1, WIDTH], "whole": [2, 5, WIDTH]},
        {"x": [2, 5, WIDTH]},
        [2, 5, WIDTH],
        {"x2": [10, WIDTH], "y2": [10, WIDTH]},
    )
    assert rewrite(model, GemmToMatMul(), x=X) == {"MatMul": 1, "Add": 1}
    assert set(model.graph.initializers) == {"w", "b"}
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), weight.T)


def test_a_bias_for_each_token_keeps_the_reshapes() -> None:
    model = graph(
        [
            node("Reshape", ["x", "flat"], ["x2"]),
            node("Gemm", ["x2", "w", "b"], ["y2"]),
            node("Reshape", ["y2", "whole"], ["y"]),
        ],
        {
            "w": random(WIDTH, WIDTH), "b": random(10, WIDTH),
            "flat": [-1, WIDTH], "whole": [2, 5, WIDTH],
        },
        {"x": [2, 5, WIDTH]},
        [2, 5, WIDTH],
        {"x2": [10, WIDTH], "y2": [10, WIDTH]},
    )  # fmt: skip
    assert rewrite(model, GemmToMatMul(), x=X) == {"Reshape": 2, "MatMul": 1, "Add": 1}


def test_a_tied_weight_keeps_its_transpose() -> None:
    model = graph(
        [
            node("Gather", ["table", "ids"], ["row"]),
            node("Add", ["x", "row"], ["h"]),
            node("Transpose", ["table"], ["t"], perm=[1, 0]),
            node("MatMul", ["h", "t"], ["y"]),
        ],
        {"table": random(WIDTH, WIDTH), "ids": np.array([3])},
        shapes={"h": SHAPE},
    )
    leave(model, GemmToMatMul())
    assert len(model.graph.initializers) == 2


@pytest.mark.parametrize(
    ("attributes", "operators"),
    [
        ({"alpha": 2.0}, {"MatMul": 1, "Mul": 1, "Add": 1}),
        ({"beta": 0.5}, {"MatMul": 1, "Add": 1}),
        ({"transA": 1}, {"Transpose": 1, "MatMul": 1, "Add": 1}),
    ],
    ids=str,
)
def test_factors_and_a_transposed_input(
    attributes: dict[str, float], operators: dict[str, int]
) -> None:
    model = graph(
        [node("Gemm", ["x", "w", "b"], ["y"], **attributes)],
        {"w": random(WIDTH, WIDTH), "b": random(WIDTH, seed=1)},
        {"x": [WIDTH, WIDTH]},
        [WIDTH, WIDTH],
    )
    assert rewrite(model, GemmToMatMul(), x=random(WIDTH, WIDTH, seed=2)) == operators


def test_factors_of_a_gemm_between_reshapes() -> None:
    model = graph(
        [
            node("Reshape", ["x", "flat"], ["x2"]),
            node("Gemm", ["x2", "w", "b"], ["y2"], transB=1, alpha=0.5, beta=3.0),
            node("Reshape", ["y2", "whole"], ["y"]),
        ],
        {
            "w": random(WIDTH, WIDTH), "b": random(WIDTH, seed=1),
            "flat": [-1, WIDTH], "whole": [2, 5, WIDTH],
        },
        {"x": [2, 5, WIDTH]},
        [2, 5, WIDTH],
        {"x2": [10, WIDTH], "y2": [10, WIDTH]},
    )  # fmt: skip
    assert rewrite(model, GemmToMatMul(), x=X) == {"MatMul": 1, "Mul": 1, "Add": 1}


def test_a_transpose_of_equal_axes_is_removed() -> None:
    model = graph(
        [node("Transpose", ["w"], ["t"], perm=[0, 1]), node("MatMul", ["x", "t"], ["y"])],
        {"w": random(WIDTH, WIDTH)},
    )
    assert rewrite(model, GemmToMatMul(), x=X) == {"MatMul": 1}
