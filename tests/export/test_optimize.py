"""Passes of an export: with and without fused operators, and ties that torch's exporter lost."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from edgetie.errors import TieError
from edgetie.export.optimize import optimize
from edgetie.export.tasks.causal import CausalTask
from edgetie.export.tasks.causal_model import CausalCall

NAMES = ("tokens.weight", "head.weight")


def tied_model(*, shared: bool = True) -> ir.Model:
    """``ids -> Gather(table) -> MatMul(tableᵀ)``, the table stored once or twice."""
    table = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["n"]))
    weights = [ir.Value(name=NAMES[0], const_value=ir.tensor(table, name=NAMES[0]))]
    if not shared:
        other = ir.tensor(table + 1, name=NAMES[1])
        weights.append(ir.Value(name=NAMES[1], const_value=other))
    gather = ir.node("Gather", [weights[0], ids], name="gather")
    turn = ir.node("Transpose", [weights[-1]], {"perm": [1, 0]}, name="transpose")
    matmul = ir.node("MatMul", [gather.outputs[0], turn.outputs[0]], name="head")
    matmul.outputs[0].name = "logits"
    matmul.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    matmul.outputs[0].shape = ir.Shape(["n", 64])
    for node, shape in ((gather, ["n", 32]), (turn, [32, 64])):
        node.outputs[0].shape, node.outputs[0].type = ir.Shape(shape), matmul.outputs[0].type
    for value in weights:
        value.shape, value.type = ir.Shape([64, 32]), matmul.outputs[0].type
    graph = ir.Graph(
        [ids], matmul.outputs, nodes=[gather, turn, matmul], initializers=weights,
        opset_imports={"": 23}, name="tied",
    )  # fmt: skip
    return ir.Model(graph, ir_version=10)


def task() -> CausalTask:
    return CausalTask(64, 128, CausalCall("no_cache"))


@pytest.mark.parametrize("fused", [True, False])
def test_a_tied_table_stays_one_initializer(fused: bool) -> None:
    model = tied_model()
    reports = optimize({"model.onnx": model}, task(), [NAMES], fused=fused)
    tables = [v for v in model.graph.initializers.values() if v.const_value.size == 64 * 32]
    assert len(tables) == 1
    assert {node.op_type for node, _ in tables[0].uses()} == {"Gather", "Gemm"}
    fusions = {"fuse_rotary", "fuse_skip_norm", "fuse_activation", "pack_projections"}
    assert fusions & {report.name for report in reports} == (fusions if fused else set())


def test_a_tie_that_the_conversion_lost_is_an_error() -> None:
    with pytest.raises(TieError, match="one parameter in torch, but not a shared initializer"):
        optimize({"model.onnx": tied_model(shared=False)}, task(), [NAMES], fused=True)


def test_one_use_of_a_tied_parameter_is_enough_if_the_graph_has_no_other() -> None:
    model = tied_model()
    gather, *_ = list(model.graph)
    vectors = torch.randn(5, 32).numpy()
    constant = ir.Value(name="x", const_value=ir.tensor(vectors, name="x"))
    constant.shape, constant.type = ir.Shape([5, 32]), ir.TensorType(ir.DataType.FLOAT)
    model.graph.register_initializer(constant)
    for node, index in list(gather.outputs[0].uses()):
        node.replace_input_with(index, constant)
    model.graph.remove(gather, safe=True)
    optimize({"model.onnx": model}, task(), [NAMES], fused=True)
