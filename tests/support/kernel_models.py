"""Small models for edgetie's execution provider, and sessions that run them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from edgetie.kernels import get_ep_names, get_library_path
from edgetie.providers.placement import count_nodes

(PROVIDER,) = get_ep_names()
MICROSOFT = "com.microsoft"
TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.uint8): TensorProto.UINT8,
}
Arrays = dict[str, np.ndarray]


def build_model(
    nodes: list[Any],
    constants: Arrays,
    inputs: dict[str, tuple[Any, list[Any]]],
    dtype: Any = np.float32,
    opset: int = 23,
) -> bytes:
    """Build a model; the last node's outputs are the model's, of unknown shape.

    Args:
        nodes: in order.
        constants: initializers by name.
        inputs: dtype and shape of each input of the model.
        dtype: of the outputs, or of each by its name.
        opset: of ONNX.
    """
    graph = helper.make_graph(
        nodes,
        "small",
        [
            helper.make_tensor_value_info(name, TYPES[np.dtype(kind)], shape)
            for name, (kind, shape) in inputs.items()
        ],
        [
            helper.make_tensor_value_info(
                name, TYPES[np.dtype(dtype[name] if isinstance(dtype, dict) else dtype)], None
            )
            for name in nodes[-1].output if name
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return data


def open_session(model: bytes, threads: int = 1, *, plugin: bool = True) -> ort.InferenceSession:
    """Open a model with edgetie's provider, or with the CPU provider alone."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if plugin:
        if not any(device.ep_name == PROVIDER for device in ort.get_ep_devices()):
            ort.register_execution_provider_library(PROVIDER, get_library_path())
        devices = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
        options.add_provider_for_devices(devices[:1], {})
    return ort.InferenceSession(model, options)


def nodes_taken(session: ort.InferenceSession) -> int:
    """Count the nodes that edgetie's provider runs."""
    return count_nodes(PROVIDER, session)[0].get(PROVIDER, 0)
