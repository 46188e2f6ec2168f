"""Passes run in order and are reported; their own errors pass through."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from small_graphs import graph, node

from edgetie.errors import ExportError
from edgetie.passes.base import GraphPass
from edgetie.passes.fuse_activation import FuseActivation
from edgetie.passes.run import run_passes


class Fail(GraphPass):
    name = "fail"

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def rewrite(self, model: ir.Model) -> None:
        raise self.error


def silu() -> ir.Model:
    return graph([node("Sigmoid", ["x"], ["s"]), node("Mul", ["x", "s"], ["y"])], {})


def test_each_pass_is_reported() -> None:
    first, second = run_passes(silu(), [], [FuseActivation(), FuseActivation()])
    assert (first.name, first.changed, first.skipped) == ("fuse_activation", 1, ())
    assert second.changed == 0
    assert first.seconds >= 0


def test_errors_of_edgetie_keep_their_type() -> None:
    with pytest.raises(ExportError, match="reason"):
        run_passes(silu(), [], [Fail(ExportError("reason"))])
    with pytest.raises(ValueError, match="bug"):
        run_passes(silu(), [], [Fail(ValueError("bug"))])
