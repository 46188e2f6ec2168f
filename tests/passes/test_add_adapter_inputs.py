"""Adapters are inputs that add nothing by default, one pair for packed projections."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from small_graphs import SHAPE, WIDTH, X, graph, node, random

from edgetie.errors import ExportError
from edgetie.passes.add_adapter_inputs import AddAdapterInputs
from edgetie.passes.base import run_passes
from edgetie.passes.pack_projections import PackProjections

NAMES = ("q.weight", "k.weight")


def model() -> ir.Model:
    """``y = (x Q + b) * (x K + b)``."""
    nodes = [
        node("MatMul", ["x", NAMES[0]], ["q"]), node("Add", ["q", "a"], ["r"]),
        node("MatMul", ["x", NAMES[1]], ["k"]), node("Add", ["k", "b"], ["s"]),
        node("Mul", ["r", "s"], ["y"]),
    ]  # fmt: skip
    constants = {
        NAMES[0]: random(WIDTH, WIDTH), NAMES[1]: random(WIDTH, WIDTH, seed=1),
        "a": random(WIDTH, seed=2), "b": random(WIDTH, seed=3),
    }  # fmt: skip
    return graph(nodes, constants, shapes=dict.fromkeys("qrks", SHAPE))


def run(edited: ir.Model, **feeds: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(edited).SerializeToString())
    return np.asarray(session.run(None, {"x": X, **feeds})[0])


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_added(packed: bool) -> None:
    edited = model()
    before = run(edited)
    if packed:
        run_passes(edited, [], [PackProjections()])
    step = AddAdapterInputs(NAMES, ["q.weight"])
    run_passes(edited, [], [step])
    (product,) = step.products
    assert product.parts == (NAMES if packed else NAMES[:1])
    assert product.in_channels == WIDTH
    np.testing.assert_allclose(run(edited), before, rtol=1e-5, atol=1e-5)
    down, up = random(WIDTH, 3, seed=4), random(3, WIDTH, seed=5)
    weights = {v.name: v.const_value.numpy() for v in model().graph.initializers.values()}
    expected = (X @ (weights[NAMES[0]] + down @ up) + weights["a"]) * (
        X @ weights[NAMES[1]] + weights["b"]
    )
    wide = np.hstack([up, np.zeros_like(up)]) if packed else up
    result = run(edited, **{product.down: down, product.up: wide})
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["v.weight", "a"])
def test_a_weight_that_no_linear_layer_reads_is_refused(name: str) -> None:
    with pytest.raises(ExportError, match=f"changes {name}, which is not the weight of one linear"):
        run_passes(model(), [], [AddAdapterInputs([*NAMES, name], [name])])
