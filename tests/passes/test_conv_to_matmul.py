"""A Conv of one position with a tied weight becomes a MatMul."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from small_graphs import WIDTH, graph, leave, node, random, run

from edgetie.passes.base import run_passes
from edgetie.passes.conv_to_matmul import ConvToMatMul

ROWS = 96
TABLE, BIAS = random(ROWS, WIDTH), random(ROWS, seed=1)
IDS = np.array([[3, 0, 95], [7, 7, 1]])


def tied(axes: int, inputs: list[str], **attributes: Any) -> ir.Model:
    """A table that is looked up, and the kernel of a convolution."""
    kernel = [ROWS, WIDTH, *[1] * axes]
    nodes = [
        node("Gather", ["table", "ids"], ["x"]),
        node("Transpose", ["x"], ["channels"], perm=[0, 2, 1]),
        node("Reshape", ["channels", "shape"], ["c"]),
        node("Reshape", ["table", "kernel_shape"], ["kernel"]),
        node("Conv", inputs, ["y"], **attributes),
    ]
    output = [2, WIDTH, *[1] * (axes - 1), 3]
    constants = {"shape": np.array(output), "kernel_shape": np.array(kernel)}
    return graph(
        nodes,
        {"table": TABLE, "bias": BIAS} | constants,
        {"ids": [2, 3]},
        [2, ROWS, *output[2:]],
        {"x": [2, 3, WIDTH], "c": output, "kernel": kernel},
        {"ids": TensorProto.INT64},
    )


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("inputs", [["c", "kernel"], ["c", "kernel", "bias"]], ids=["", "bias"])
def test_a_tied_kernel(axes: int, inputs: list[str]) -> None:
    model = tied(axes, inputs)
    before = run(model, ids=IDS)
    run_passes(model, [], [ConvToMatMul()])
    np.testing.assert_allclose(run(model, ids=IDS), before, rtol=1e-4, atol=1e-4)
    operators = [each.op_type for each in model.graph]
    assert "MatMul" in operators
    assert "Conv" not in operators


def test_other_convolutions_stay() -> None:
    leave(tied(1, ["c", "kernel"], pads=[1, 1]), ConvToMatMul())
    untied = graph(
        [node("Conv", ["x", "kernel"], ["y"])],
        {"kernel": TABLE[..., None]},
        {"x": [2, WIDTH, 5]},
        [2, ROWS, 5],
    )
    leave(untied, ConvToMatMul())
