"""A Conv of patches becomes a MatMul."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import graph, leave, node, random, run

from edgetie.passes.base import run_passes
from edgetie.passes.patches_to_matmul import PatchesToMatMul

OUTPUTS, CHANNELS = 8, 3


def patches(
    size: list[int], kernel: list[int], *, bias: bool = False, **attributes: Any
) -> ir.Model:
    """A convolution of an image ``(2, 3, *size)``."""
    constants = {"kernel": random(OUTPUTS, CHANNELS, *kernel)}
    constants |= {"bias": random(OUTPUTS, seed=1)} if bias else {}
    grid = [length // side for length, side in zip(size, kernel, strict=True)]
    convolution = node("Conv", ["x", *constants], ["y"], **{"strides": kernel, **attributes})
    return graph([convolution], constants, {"x": [2, CHANNELS, *size]}, [2, OUTPUTS, *grid])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("size", "kernel"), [([8, 12], [4, 3]), ([12], [4]), ([2, 6, 6], [2, 3, 3]), ([4, 4], [4, 4])]
)
def test_patches_of_any_number_of_axes(size: list[int], kernel: list[int], bias: bool) -> None:
    model = patches(size, kernel, bias=bias)
    x = random(2, CHANNELS, *size, seed=2)
    before = run(model, x=x)
    (report,) = run_passes(model, [], [PatchesToMatMul()])
    assert report.changed == 1
    assert {each.op_type for each in model.graph} >= {"MatMul"}
    assert "Conv" not in {each.op_type for each in model.graph}
    np.testing.assert_allclose(run(model, x=x), before, rtol=1e-4, atol=1e-4)


def test_other_convolutions_stay() -> None:
    for model in (
        patches([8, 8], [1, 1]),
        patches([8, 8], [4, 4], dilations=[1, 2], strides=[4, 4], pads=[0, 2, 0, 2]),
        patches([9, 9], [4, 4]),
        patches([8, 8], [2, 2], strides=[1, 1], pads=[0, 0, 0, 0]),
    ):
        leave(model, PatchesToMatMul())


def test_a_kernel_that_another_graph_reads_stays() -> None:
    leave(patches([8, 8], [4, 4]), PatchesToMatMul({"kernel"}))
