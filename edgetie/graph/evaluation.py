"""Run a small graph in ONNX Runtime."""

from typing import Any

import numpy as np
import onnx_ir as ir


def evaluate(
    graph: ir.Graph, feeds: dict[str, np.ndarray[Any, Any]] | None = None
) -> list[np.ndarray[Any, Any]]:
    """Compute the outputs of a graph, such as one of ``onnx_ir.convenience.extract``.

    Args:
        graph: its external initializers are read into memory.
        feeds: its inputs by name.
    """
    import onnxruntime

    model = ir.Model(graph, ir_version=10)
    ir.external_data.load_to_model(model)  # a session of bytes has no folder to read from
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    results: list[np.ndarray[Any, Any]] = session.run(None, feeds or {})
    return results
