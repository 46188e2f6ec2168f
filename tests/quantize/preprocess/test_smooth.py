"""Smoothed activations and weights give the same results."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from small_graphs import SHAPE, X, graph, leave, node, random, rewrite

from edgetie.passes.base import run_passes
from edgetie.passes.gemm_to_matmul import GemmToMatMul
from edgetie.passes.remove_flatten_reshapes import RemoveFlattenReshapes
from edgetie.quantize.preprocess.linear_inputs import find_linear_inputs
from edgetie.quantize.preprocess.smooth import Smooth, find_smoothable_inputs, smoothing_scales

SCALES = np.linspace(0.5, 2, 64).astype(np.float32)


def weight_of(model: object, name: str) -> np.ndarray:
    return np.array(model.graph.initializers[name].const_value.numpy())  # type: ignore[attr-defined]


def test_scales_have_a_geometric_mean_of_1() -> None:
    magnitudes = np.array([1, 100, 1e-9], np.float32)
    scales = smoothing_scales(magnitudes, 0.5)
    assert np.log(scales).mean() == pytest.approx(0, abs=1e-6)
    assert scales[1] / scales[0] == pytest.approx(10, rel=1e-5)
    np.testing.assert_allclose(smoothing_scales(magnitudes, 0.0), 1.0)


@pytest.mark.parametrize("norm", ["RMSNormalization", "LayerNormalization"])
def test_a_norm_divides(norm: str) -> None:
    constants = {"gain": random(64, seed=1), "bias": random(64, seed=2), "w": random(64, 64)}
    inputs = ["x", "gain"] if norm == "RMSNormalization" else ["x", "gain", "bias"]
    if norm == "RMSNormalization":
        del constants["bias"]
    model = graph(
        [node(norm, inputs, ["h"], axis=-1), node("MatMul", ["h", "w"], ["y"])], constants
    )
    before = {name: weight_of(model, name) for name in constants}
    assert rewrite(model, Smooth({"h": SCALES}), x=X) == {norm: 1, "MatMul": 1}
    np.testing.assert_allclose(weight_of(model, "gain"), before["gain"] / SCALES, rtol=1e-6)
    np.testing.assert_allclose(weight_of(model, "w"), before["w"] * SCALES[:, None], rtol=1e-6)


def test_a_gain_that_another_norm_reads_is_copied() -> None:
    nodes = [
        node("LayerNormalization", ["x", "gain"], ["h"], axis=-1, name="first"),
        node("MatMul", ["h", "w"], ["p"]),
        node("LayerNormalization", ["p", "gain"], ["y"], axis=-1, name="second"),
    ]
    model = graph(nodes, {"gain": random(64, seed=1), "w": random(64, 64)})
    gain = weight_of(model, "gain")
    rewrite(model, Smooth({"h": SCALES}), x=X)
    np.testing.assert_array_equal(weight_of(model, "gain"), gain)
    np.testing.assert_allclose(weight_of(model, "gain.first.smooth"), gain / SCALES, rtol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_the_linear_branch_of_a_gate_divides(bias: bool) -> None:
    """Both branches are packed in one weight, as exports have them."""
    constants = {"up": random(64, 128), "down": random(64, 64, seed=1), "sizes": np.array([64, 64])}
    product = "packed" if not bias else "product"
    nodes = [node("MatMul", ["x", "up"], [product])]
    if bias:
        constants["bias"] = random(128, seed=2)
        nodes.append(node("Add", ["product", "bias"], ["packed"]))
    nodes += [
        node("Split", ["packed", "sizes"], ["gate", "linear"], axis=-1),
        node("Sigmoid", ["gate"], ["s"]),
        node("Mul", ["s", "linear"], ["h"]),
        node("MatMul", ["h", "down"], ["y"]),
    ]
    model = graph(nodes, constants, shapes={"linear": SHAPE})
    up = weight_of(model, "up")
    rewrite(model, Smooth({"h": SCALES}), x=X)
    np.testing.assert_array_equal(weight_of(model, "up")[:, :64], up[:, :64])
    np.testing.assert_allclose(weight_of(model, "up")[:, 64:], up[:, 64:] / SCALES, rtol=1e-6)


def test_a_tied_embedding_stays_as_it_is() -> None:
    nodes = [
        node("Gather", ["table", "ids"], ["e"]),
        node("LayerNormalization", ["e", "gain"], ["h"], axis=-1),
        node("Transpose", ["table"], ["t"], perm=[1, 0]),
        node("MatMul", ["h", "t"], ["y"]),
    ]
    model = graph(
        nodes, {"table": random(40, 64), "gain": random(64, seed=1)}, {"ids": ["b", "s"]},
        ["b", "s", 40], types={"ids": TensorProto.INT64},
    )  # fmt: skip
    assert find_smoothable_inputs(model) == {}
    leave(model, Smooth({"h": SCALES}))


def test_an_activation_function_before_is_not_linear() -> None:
    nodes = [node("Relu", ["x"], ["h"]), node("MatMul", ["h", "w"], ["y"])]
    model = graph(nodes, {"w": random(64, 64)})
    assert find_smoothable_inputs(model) == {}
    leave(model, Smooth({"h": SCALES}))


@pytest.mark.slow
def test_gates_and_norms_of_an_exported_model(float_bundle: Any) -> None:
    model = ir.load(float_bundle("Llama") / "model.onnx")
    run_passes(model, [], [GemmToMatMul(), RemoveFlattenReshapes()])
    smoothable = find_smoothable_inputs(model)
    producers = [linear_input.value.producer() for linear_input in smoothable.values()]
    assert [node.op_type for node in producers if node is not None].count("Mul") == 2
    assert len(find_linear_inputs(model)) == 2 * 4 + 1
