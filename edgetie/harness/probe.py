"""Whether a provider starts: ``python -m edgetie.harness.probe`` runs one product on it.

What onnxruntime lists it was built with; drivers and libraries may still be missing.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

from edgetie.errors import EdgetieError
from edgetie.harness.answers import answer_stream
from edgetie.runtime.session import open_session


def _main() -> None:
    result = answer_stream()
    request = json.load(sys.stdin)
    shape, float32 = [1, 16], onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "probe",
        [onnx.helper.make_tensor_value_info("x", float32, shape)],
        [onnx.helper.make_tensor_value_info("y", float32, shape)],
        [onnx.numpy_helper.from_array(np.eye(16, dtype=np.float32), "weight")],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=opset)
    answer: dict[str, object]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        onnx.save(model, path)
        try:
            session = open_session(path, provider=request["provider"])
            answer = {"nodes": session.nodes_per_provider}
        except EdgetieError as error:
            answer = {"error": {"type": type(error).__name__, "message": str(error)}}
    with result:
        json.dump(answer, result)


if __name__ == "__main__":
    _main()
