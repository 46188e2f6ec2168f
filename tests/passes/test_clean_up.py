"""Constants, identities and equal expressions are cleaned up; tied weights stay."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, numpy_helper
from small_graphs import SHAPE, WIDTH, X, graph, node, random, rewrite

from edgetie.passes.clean_up import CleanUp
from edgetie.ties.groups import find_ties


def test_constants_identities_and_equal_expressions() -> None:
    two = numpy_helper.from_array(np.float32([2]), "two")
    model = graph(
        [
            node("Constant", [], ["two"], value=two),
            node("Identity", ["x"], ["same"]),
            node("Mul", ["same", "two"], ["a"]),
            node("Mul", ["x", "two"], ["b"]),
            node("Add", ["a", "b"], ["y"]),
        ],
        {"again": np.float32([2])},
    )
    assert rewrite(model, CleanUp(), x=X) == {"Mul": 1, "Add": 1}
    assert len(model.graph.initializers) == 1


def expression() -> object:
    return graph(
        [
            node("Sin", ["angles"], ["sines"]),
            node("Mul", ["x", "sines"], ["m"]),
            node("Identity", ["m"], ["y"]),
        ],
        {"angles": random(WIDTH)},
    )


def test_expressions_are_folded_on_request() -> None:
    assert rewrite(expression(), CleanUp(), x=X) == {"Mul": 1}
    assert rewrite(expression(), CleanUp(fold=False), x=X) == {"Sin": 1, "Mul": 1}


def test_the_transpose_of_a_tied_weight_is_not_folded() -> None:
    model = graph(
        [
            node("Gather", ["table", "ids"], ["row"]),
            node("Add", ["x", "row"], ["h"]),
            node("Transpose", ["table"], ["t"], perm=[1, 0]),
            node("MatMul", ["h", "t"], ["m"]),
            node("Identity", ["m"], ["y"]),
        ],
        {"table": random(WIDTH, WIDTH)},
        {"x": SHAPE, "ids": [1]},
        shapes={"h": SHAPE},
        types={"ids": TensorProto.INT64},
    )
    assert rewrite(model, CleanUp(), x=X, ids=np.array([3]))["Transpose"] == 1
    (tie,) = find_ties(model)
    assert [use.op_type for use in tie.uses] == ["Gather", "MatMul"]
