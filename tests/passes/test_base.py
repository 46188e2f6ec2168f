"""Passes: names, unused nodes, unique names, ties as postcondition, reports and errors."""

from __future__ import annotations

import importlib
import pkgutil

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import X, graph, node, run

import edgetie.passes
from edgetie.errors import ExportError, TieError
from edgetie.graph.editing import insert, replace
from edgetie.passes.base import GraphPass, run_passes
from edgetie.passes.fuse_activation import FuseActivation
from edgetie.ties.groups import TieGroup


class ReplaceTanh(GraphPass):
    name = "replace_tanh"

    def rewrite(self, model: ir.Model) -> None:
        for tanh in [n for n in model.graph if n.op_type == "Tanh"]:
            fused = ir.node("QuickGelu", [tanh.inputs[0]], {"alpha": 1.0}, domain="com.microsoft")
            fused.outputs[0].name = "x"  # a name that the graph's input has already
            insert(tanh, fused)
            replace(tanh.outputs[0], fused.outputs[0])
            self.changed += 1


def test_passes_are_named_after_their_modules() -> None:
    names = [module.name for module in pkgutil.iter_modules(edgetie.passes.__path__)]
    modules = [importlib.import_module(f"edgetie.passes.{name}") for name in names]
    passes = {
        module.__name__.rpartition(".")[2]: value.name
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, GraphPass)
        and value.__module__ == module.__name__
        and value is not GraphPass
    }
    assert len(passes) > 12
    assert all(name == module for module, name in passes.items())


def test_replaced_nodes_are_removed_and_names_are_unique() -> None:
    model = graph([node("Tanh", ["x"], ["t"]), node("Neg", ["t"], ["y"])], {})
    del model.graph.opset_imports["com.microsoft"]
    ReplaceTanh()(model)
    assert [n.op_type for n in model.graph] == ["QuickGelu", "Neg"]
    assert model.graph.opset_imports["com.microsoft"] == 1
    names = [v.name for v in (*model.graph.inputs, *(v for n in model.graph for v in n.outputs))]
    assert len(set(names)) == len(names)
    np.testing.assert_allclose(run(model, x=X), -X / (1 + np.exp(-X)), rtol=1e-4, atol=1e-6)


def test_a_lost_tie_is_an_error_of_the_pass() -> None:
    model = graph([node("Tanh", ["x"], ["y"])], {})
    tie = TieGroup("table", (64, 64), "FLOAT", 16384, ())
    with pytest.raises(TieError, match="pass replace_tanh: the tied weight table is gone"):
        run_passes(model, [tie], [ReplaceTanh()])


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
