"""Expressions of small constants are computed once."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from small_graphs import WIDTH, X, graph, leave, node, random, rewrite

from edgetie.errors import BundleError
from edgetie.passes.fold_constants import FoldConstants


def test_expressions_of_constants_become_initializers() -> None:
    model = graph(
        [
            node("Range", ["zero", "width", "one"], ["r"]),
            node("Cast", ["r"], ["c"], to=TensorProto.FLOAT),
            node("Sin", ["c"], ["s"]),
            node("Add", ["x", "s"], ["a"]),
            node("Mul", ["a", "c"], ["y"]),
        ],
        {"zero": np.int64(0), "width": np.int64(WIDTH), "one": np.int64(1)},
    )
    assert rewrite(model, FoldConstants(), x=X) == {"Add": 1, "Mul": 1}
    assert sorted(model.graph.initializers) == ["c.folded", "s.folded"]


def test_constants_that_do_not_fit_their_node_are_refused() -> None:
    model = graph(
        [node("Transpose", ["two"], ["t"], perm=[0, 2, 1]), node("Add", ["x", "t"], ["y"])],
        {"two": np.float32([1, 2])},
    )
    with pytest.raises(BundleError, match="ONNX Runtime cannot compute a constant"):
        FoldConstants().rewrite(model)


def test_a_copy_of_a_weight_is_not_stored() -> None:
    model = graph(
        [node("Transpose", ["w"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["y"])],
        {"w": random(WIDTH, WIDTH)},
    )
    leave(model, FoldConstants())


def test_random_numbers_and_branches_are_left() -> None:
    draw = [node("RandomUniformLike", ["one"], ["r"]), node("Add", ["x", "r"], ["y"])]
    leave(graph(draw, {"one": np.ones(WIDTH, np.float32)}), FoldConstants())
    output = helper.make_tensor_value_info("b", TensorProto.FLOAT, [WIDTH])
    branch = helper.make_graph([node("Neg", ["one"], ["b"])], "branch", [], [output])
    choose = [
        node("If", ["flag"], ["c"], then_branch=branch, else_branch=branch),
        node("Add", ["x", "c"], ["y"]),
    ]
    constants = {"one": np.ones(WIDTH, np.float32), "flag": np.array(True)}
    leave(graph(choose, constants), FoldConstants())


def test_a_value_that_a_branch_reads_is_folded() -> None:
    output = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    branch = helper.make_graph([node("Neg", ["s"], ["b"])], "branch", [], [output])
    model = graph(
        [
            node("Sin", ["one"], ["s"]),
            node("ReduceMax", ["x"], ["m"], keepdims=0),
            node("Greater", ["m", "limit"], ["flag"]),
            node("If", ["flag"], ["c"], then_branch=branch, else_branch=branch),
            node("Add", ["x", "c"], ["y"]),
        ],
        {"one": np.ones(WIDTH, np.float32), "limit": np.float32(0)},
    )
    assert rewrite(model, FoldConstants(), x=X)["Sin"] == 0
