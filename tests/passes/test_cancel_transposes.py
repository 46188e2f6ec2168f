"""Transposes, Reshapes and Slices without effect are removed."""

from __future__ import annotations

import numpy as np
from small_graphs import WIDTH, X, graph, leave, node, random, rewrite

from edgetie.passes.cancel_transposes import CancelTransposes

HEADS = ["batch", "sequence", 4, WIDTH // 4]
BY_HEAD = ["batch", 4, "sequence", WIDTH // 4]


def test_transposes_around_a_norm_of_heads_are_removed() -> None:
    model = graph(
        [
            node("Reshape", ["x", "split"], ["h"]),
            node("Transpose", ["h"], ["t"], perm=[0, 2, 1, 3]),
            node("RMSNormalization", ["t", "weight"], ["n"], axis=-1),
            node("Transpose", ["n"], ["back"], perm=[0, 2, 1, 3]),
            node("Reshape", ["back", "join"], ["y"]),
        ],
        {
            "split": np.array([2, 5, 4, WIDTH // 4]),
            "join": np.array([2, 5, WIDTH]),
            "weight": random(WIDTH // 4),
        },
        shapes={"h": HEADS, "t": BY_HEAD, "n": BY_HEAD, "back": HEADS},
    )
    assert rewrite(model, CancelTransposes(), x=X) == {"Reshape": 2, "RMSNormalization": 1}
    assert len(model.graph.initializers) == 3


def test_inverse_transposes_are_removed_and_others_stay() -> None:
    for perm, remaining in ([0, 2, 1], {"Relu": 1}), ([2, 1, 0], {"Transpose": 2, "Relu": 1}):
        model = graph(
            [
                node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
                node("Transpose", ["t"], ["u"], perm=perm),
                node("Relu", ["u"], ["y"]),
            ],
            {},
            output=[None, None, None],
        )
        if remaining == {"Relu": 1}:
            assert rewrite(model, CancelTransposes(), x=X) == remaining
        else:
            leave(model, CancelTransposes())


def test_reshapes_in_a_row_become_one_or_none() -> None:
    model = graph(
        [
            node("Reshape", ["x", "flat"], ["f"]),
            node("Reshape", ["f", "heads"], ["h"]),
            node("Tanh", ["h"], ["t"]),
            node("Reshape", ["t", "whole"], ["r"]),
            node("Reshape", ["r", "whole"], ["y"]),
        ],
        {
            "flat": np.array([10, WIDTH]), "heads": np.array([2, 5, 4, 16]),
            "whole": np.array([2, 5, WIDTH]),
        },
        {"x": [2, 5, WIDTH]}, [2, 5, WIDTH],
        {"f": [10, WIDTH], "h": [2, 5, 4, 16], "t": [2, 5, 4, 16], "r": [2, 5, WIDTH]},
    )  # fmt: skip
    assert rewrite(model, CancelTransposes(), x=X) == {"Reshape": 2, "Tanh": 1}


def test_a_reshape_that_copies_a_dimension_of_its_input_stays() -> None:
    model = graph(
        [node("Reshape", ["x", "flat"], ["f"]), node("Reshape", ["f", "copy"], ["y"])],
        {"flat": np.array([10, WIDTH]), "copy": np.array([0, 4, 16])},
        {"x": [2, 5, WIDTH]}, [10, 4, 16], {"f": [10, WIDTH]},
    )  # fmt: skip
    leave(model, CancelTransposes())


def test_a_slice_of_everything_is_removed() -> None:
    constants = {"zero": np.array([0]), "end": np.array([(1 << 63) - 1]), "axis": np.array([1])}
    nodes = [node("Slice", ["x", "zero", "end", "axis"], ["s"]), node("Tanh", ["s"], ["y"])]
    assert rewrite(graph(nodes, constants), CancelTransposes(), x=X) == {"Tanh": 1}
    leave(graph(nodes, {**constants, "zero": np.array([1])}), CancelTransposes())
