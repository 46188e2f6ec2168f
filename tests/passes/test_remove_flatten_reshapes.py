"""Reshapes that flatten before a MatMul and restore after it are removed."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import SHAPE, WIDTH, X, graph, leave, node, random, rewrite

from edgetie.passes.remove_flatten_reshapes import RemoveFlattenReshapes


def flattened(restored: list, result: list, transposed: bool = False) -> object:
    weight = random(96, WIDTH) if transposed else random(WIDTH, 96)
    right = ["t"] if transposed else ["w"]
    return graph(
        [
            node("Reshape", ["x", "flat"], ["f"]),
            *([node("Transpose", ["w"], ["t"], perm=[1, 0])] if transposed else []),
            node("MatMul", ["f", *right], ["m"]),
            node("Reshape", ["m", "restored"], ["y"]),
        ],
        {"w": weight, "flat": np.array([-1, WIDTH]), "restored": np.array(restored)},
        output=result,
        shapes={"f": ["tokens", WIDTH], "m": ["tokens", 96]},
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_a_flattened_matmul_reads_its_input_directly(transposed: bool) -> None:
    model = flattened([2, 5, 96], [*SHAPE[:2], 96], transposed)
    operators = rewrite(model, RemoveFlattenReshapes(), x=X)
    assert operators["Reshape"] == 0
    assert operators["MatMul"] == 1
    assert set(model.graph.initializers) == {"w"}


def test_a_reshape_to_another_shape_stays() -> None:
    leave(flattened([2, 5, 4, 24], ["batch", "sequence", 4, 24]), RemoveFlattenReshapes())
    leave(flattened([5, 2, 96], ["sequence", "batch", 96]), RemoveFlattenReshapes())
