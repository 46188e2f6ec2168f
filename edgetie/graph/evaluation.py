"""Runs a small piece of a graph in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir


def evaluate(
    nodes: list[ir.Node], graph_input: ir.Value, output: ir.Value, array: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Compute ``output`` of detached ``nodes`` from one input; their other inputs are constants."""
    import onnxruntime

    own = {value for node in nodes for value in node.outputs}
    constants = {
        value: ir.Value(
            name=value.name, shape=value.shape, type=value.type, const_value=value.const_value
        )
        for node in nodes
        for value in node.inputs
        if value is not None and value not in own and value is not graph_input
    }
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value in constants:
                node.replace_input_with(index, constants[value])
    graph = ir.Graph(
        [graph_input],
        [output],
        nodes=nodes,
        initializers=list(constants.values()),
        opset_imports={"": 23, "com.microsoft": 1},
        name="piece",
    )
    model = ir.serde.serialize_model(ir.Model(graph, ir_version=10))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    result: np.ndarray[Any, Any] = session.run(None, {str(graph_input.name): array})[0]
    return result
