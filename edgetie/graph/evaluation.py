"""Run a small graph in ONNX Runtime."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]


def evaluate(graph: ir.Graph, feeds: Mapping[str, Array] | None = None) -> list[Array]:
    """Compute the outputs of a graph, such as one of ``onnx_ir.convenience.extract``.

    Args:
        graph: its external initializers are read into memory.
        feeds: its inputs by name.
    """
    return evaluator(graph)(feeds or {})


def evaluator(graph: ir.Graph) -> Callable[[Mapping[str, Array]], list[Array]]:
    """Return a function of a graph's inputs by name that computes its outputs.

    Raises:
        Exception: if ONNX Runtime cannot run the graph, whatever the inputs.
    """
    import onnxruntime

    model = ir.Model(graph, ir_version=10)
    ir.external_data.load_to_model(model)  # a session of bytes has no folder to read from
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, and need not be printed too
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"],
        enable_fallback=0,
    )  # fmt: skip

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        results: list[Array] = session.run(None, dict(feeds))
        return results

    return run
