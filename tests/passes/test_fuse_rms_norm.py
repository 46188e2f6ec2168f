"""RMS norms in the forms that exporters write."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto
from small_graphs import SHAPE, WIDTH, X, graph, leave, node, random, rewrite

from edgetie.passes.fuse_rms_norm import FuseRmsNorm

CONSTANTS = {"two": np.float32(2), "last": np.array([-1]), "eps": np.float32(1e-5)}


def mean_of_squares(square: str) -> list:
    return [
        node(square, ["x", "two" if square == "Pow" else "x"], ["s"]),
        node("ReduceMean", ["s", "last"], ["mean"], keepdims=1),
        node("Add", ["mean", "eps"], ["shifted"]),
        node("Sqrt", ["shifted"], ["root"]),
    ]


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("division", ["Reciprocal", "1/x", "Div"])
def test_norms_with_weight_become_one_operator(square: str, division: str) -> None:
    nodes = mean_of_squares(square)
    constants = {**CONSTANTS, "weight": random(WIDTH), "one": np.float32(1)}
    if division == "Div":
        nodes.append(node("Div", ["x", "root"], ["normed"]))
    else:
        one_over = ["root"] if division == "Reciprocal" else ["one", "root"]
        nodes.append(node("Reciprocal" if len(one_over) == 1 else "Div", one_over, ["inverse"]))
        nodes.append(node("Mul", ["x", "inverse"], ["normed"]))
    nodes.append(node("Mul", ["weight", "normed"], ["y"]))
    model = graph(nodes, constants)
    assert rewrite(model, FuseRmsNorm(), x=X) == {"RMSNormalization": 1}
    assert set(model.graph.initializers) == {"weight"}


def test_a_norm_without_weight_gets_ones() -> None:
    model = graph([*mean_of_squares("Pow"), node("Div", ["x", "root"], ["y"])], CONSTANTS)
    assert rewrite(model, FuseRmsNorm(), x=X) == {"RMSNormalization": 1}
    (ones,) = model.graph.initializers.values()
    np.testing.assert_array_equal(ones.const_value.numpy(), np.ones(WIDTH))


def test_casts_around_the_norm_are_removed() -> None:
    half, wide = TensorProto.FLOAT16, TensorProto.FLOAT
    nodes = [
        node("Cast", ["h"], ["x"], to=wide),
        *mean_of_squares("Pow"),
        node("Div", ["x", "root"], ["normed"]),
        node("Cast", ["normed"], ["narrow"], to=half),
        node("Mul", ["narrow", "weight"], ["y"]),
    ]
    model = graph(
        nodes, {**CONSTANTS, "weight": random(WIDTH).astype(np.float16)}, {"h": SHAPE},
        shapes={"x": SHAPE, "narrow": SHAPE}, types={"h": half, "y": half, "narrow": half},
    )  # fmt: skip
    before = [value.name for value in model.graph.inputs]
    step = FuseRmsNorm()
    step(model)
    assert [n.op_type for n in model.graph] == ["RMSNormalization"]
    assert [value.name for value in model.graph.inputs] == before


def test_another_use_of_the_mean_is_named() -> None:
    nodes = [*mean_of_squares("Pow"), node("Mul", ["root", "root"], ["y"])]
    step = FuseRmsNorm()
    leave(graph(nodes, CONSTANTS, output=["batch", "sequence", 1]), step)
    assert len(step.skipped) == 1
    assert "not an RMS norm" in step.skipped[0]


def test_a_mean_over_another_axis_stays() -> None:
    nodes = [*mean_of_squares("Pow"), node("Div", ["x", "root"], ["y"])]
    leave(graph(nodes, {**CONSTANTS, "last": np.array([1])}), FuseRmsNorm())
