"""The tied head reads the table as it is stored."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from small_graphs import SHAPE, WIDTH, X, graph, leave, node, random, rewrite

from edgetie.passes.tied_head_gemm import TiedHeadGemm
from edgetie.ties.groups import find_ties

ROWS = 96


def tied_head(opset: int = 23, perm: tuple[int, ...] = (1, 0), rows: int = ROWS) -> ir.Model:
    return graph(
        [
            node("Gather", ["table", "ids"], ["bias"], name="lookup"),
            node("Add", ["x", "bias"], ["h"]),
            node("Transpose", ["table"], ["t"], perm=perm),
            node("MatMul", ["h", "t"], ["y"], name="head"),
        ],
        {"table": random(rows, WIDTH), "ids": np.array([3])},
        output=["batch", "sequence", rows],
        shapes={"h": SHAPE},
        opset=opset,
    )


def test_the_head_becomes_a_gemm_over_the_table() -> None:
    model = tied_head()
    operators = rewrite(model, TiedHeadGemm(), x=X)
    assert operators["Transpose"] == 0
    assert operators["Gemm"] == 1
    (tie,) = find_ties(model)
    assert {(use.op_type, use.input) for use in tie.uses} == {("Gather", 0), ("Gemm", 1)}
    matrices = [v for v in model.graph.initializers.values() if len(v.shape) == 2]
    assert len(matrices) == 1


def test_an_empty_sequence_has_empty_logits() -> None:
    model = tied_head()
    rewrite(model, TiedHeadGemm(), x=np.zeros((2, 0, WIDTH), np.float32))


def test_a_matrix_of_activations_needs_no_reshape() -> None:
    model = graph(
        [node("Transpose", ["table"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["y"])],
        {"table": random(ROWS, WIDTH)},
        {"x": ["tokens", WIDTH]},
        ["tokens", ROWS],
    )
    assert rewrite(model, TiedHeadGemm(), x=X[0]) == {"Gemm": 1}


def test_an_old_opset_is_named() -> None:
    step = TiedHeadGemm()
    leave(tied_head(opset=14), step)
    assert step.skipped == ["head reads a transposed table: the opset is too old for Gemm"]


def test_a_transpose_that_keeps_the_axes_stays() -> None:
    leave(tied_head(perm=(0, 1), rows=WIDTH), TiedHeadGemm())
