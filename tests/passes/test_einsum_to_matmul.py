"""An Einsum with a weight becomes a MatMul with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import WIDTH, X, graph, leave, node, random, rewrite

from edgetie.passes.einsum_to_matmul import EinsumToMatMul

ROWS = 96
TABLE = random(ROWS, WIDTH)


def model(equation: str, output: list[Any], *operands: str, **constants: np.ndarray) -> ir.Model:
    nodes = [node("Einsum", operands or ["x", "table"], ["y"], equation=equation)]
    return graph(nodes, {"table": TABLE} | constants, {"x": [2, 5, WIDTH]}, output)


@pytest.mark.parametrize(
    ("equation", "shape", "operators"),
    [
        ("bsh,vh->bsv", [2, 5, ROWS], {"Transpose": 1, "MatMul": 1}),
        (" b s h , v h -> b s v ", [2, 5, ROWS], {"Transpose": 1, "MatMul": 1}),
        ("abz,cz", [2, 5, ROWS], {"Transpose": 1, "MatMul": 1}),
        ("...h,vh->...v", [2, 5, ROWS], {"Transpose": 1, "MatMul": 1}),
        ("bsh,vh->vbs", [ROWS, 2, 5], {"Transpose": 1, "MatMul": 1, "Einsum": 1}),
        ("bsh,vh->bv", [2, ROWS], {"Transpose": 1, "MatMul": 1, "Einsum": 1}),
    ],
)
def test_products(equation: str, shape: list[int], operators: dict[str, int]) -> None:
    assert rewrite(model(equation, shape), EinsumToMatMul(), x=X) == operators


def test_operands_in_another_order_and_a_matrix_as_it_is_stored() -> None:
    layer = random(WIDTH, ROWS, seed=1)
    result = model("hv,bsh->bsv", [2, 5, ROWS], "w", "x", w=layer)
    assert rewrite(result, EinsumToMatMul(), x=X) == {"MatMul": 1}


def test_vectors_are_multiplied_before_or_after() -> None:
    columns, rows = random(WIDTH, seed=1), random(ROWS, seed=2)
    shape, names = [2, 5, ROWS], ["x", "table", "a", "b"]
    result = model("bsh,vh,h,v->bsv", shape, *names, a=columns, b=rows)
    operators = {"Einsum": 2, "Transpose": 1, "MatMul": 1}
    assert rewrite(result, EinsumToMatMul(), x=X) == operators


def test_two_matrices_become_two_products() -> None:
    layer = random(WIDTH, WIDTH, seed=1)
    result = model("bsh,hk,vk->bsv", [2, 5, ROWS], "x", "w", "table", w=layer)
    operators = rewrite(result, EinsumToMatMul(), x=X)
    assert (operators["MatMul"], operators["Einsum"]) == (2, 0)
    shapes = [v.shape.numpy() for n in result.graph for v in n.outputs if n.op_type == "MatMul"]
    assert shapes == [(2, 5, WIDTH), (2, 5, ROWS)]


@pytest.mark.parametrize(
    ("equation", "shape", "output"),
    [
        ("bsh,hnd->bsnd", (WIDTH, 4, 24), [2, 5, 4, 24]),
        ("bsh,hnd->bnsd", (WIDTH, 4, 24), [2, 4, 5, 24]),
        ("...h,vwh->...vw", (4, 24, WIDTH), [2, 5, 4, 24]),
        ("bsh,shv->bv", (5, WIDTH, ROWS), [2, ROWS]),
    ],
)
def test_weights_of_more_axes(equation: str, shape: tuple[int, ...], output: list[int]) -> None:
    result = model(equation, output, "x", "w", w=random(*shape))
    operators = rewrite(result, EinsumToMatMul(), x=X)
    assert operators["MatMul"] == 1
    product = next(n for n in result.graph if n.op_type == "MatMul")
    assert len(product.inputs[1].shape) == 2


def test_axes_that_are_not_next_to_each_other_stay() -> None:
    leave(model("bsh,vhw->bsvw", [2, 5, 4, 24], "x", "w", w=random(4, WIDTH, 24)), EinsumToMatMul())


def test_what_is_no_product_stays() -> None:
    square = random(WIDTH, WIDTH, seed=1)
    leave(model("bsh,bsh->bs", [2, 5], "x", "x"), EinsumToMatMul())
    leave(model("bsh,hh->bsh", [2, 5, WIDTH], "x", "w", w=square), EinsumToMatMul())
    leave(model("bsh,vh->bshv", [2, 5, WIDTH, ROWS]), EinsumToMatMul())
