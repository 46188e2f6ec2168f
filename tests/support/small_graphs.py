"""Graphs of a few nodes, run before and after a pass."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from edgetie.passes.base import GraphPass, run_passes
from edgetie.ties.groups import find_ties

WIDTH = 64
SHAPE = ["batch", "sequence", WIDTH]
node = helper.make_node
Shapes = dict[str, list[Any]]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X = random(2, 5, WIDTH, seed=7)


def graph(
    nodes: list[Any],
    constants: dict[str, Any],
    inputs: Shapes | None = None,
    output: list[Any] | None = None,
    shapes: Shapes | None = None,
    types: dict[str, int] | None = None,
    opset: int = 23,
) -> ir.Model:
    """Build a graph with the output ``y``.

    Args:
        nodes: in order.
        constants: initializers.
        inputs: names and shapes; ``x`` of ``SHAPE`` by default.
        output: shape of ``y``.
        shapes: of values in between.
        types: of inputs and values that are not float32.
        opset: of ONNX.
    """

    def info(name: str, shape: list[Any]) -> Any:
        dtype = (types or {}).get(name, TensorProto.FLOAT)
        return helper.make_tensor_value_info(name, dtype, shape)

    proto = helper.make_graph(
        nodes,
        "small",
        [info(*item) for item in (inputs or {"x": SHAPE}).items()],
        [info("y", output or SHAPE)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
        value_info=[info(*item) for item in (shapes or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return ir.serde.deserialize_model(helper.make_model(proto, opset_imports=opsets, ir_version=10))


def run(model: ir.Model, **feeds: Any) -> np.ndarray:
    """Run a graph in ONNX Runtime, without its optimizations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(["y"], feeds)[0]
    return result


def rewrite(model: ir.Model, step: GraphPass, **feeds: Any) -> Counter[str]:
    """Run a pass that must change the graph but not its result. Returns the operators."""
    before = run(model, **feeds)
    run_passes(model, find_ties(model), [step])
    assert step.changed
    np.testing.assert_allclose(run(model, **feeds), before, rtol=1e-4, atol=1e-5)
    return Counter(node.op_type for node in model.graph)


def leave(model: ir.Model, step: GraphPass) -> None:
    """Run a pass that must not change the graph."""
    before = [node.op_type for node in model.graph]
    run_passes(model, find_ties(model), [step])
    assert not step.changed
    assert [node.op_type for node in model.graph] == before
