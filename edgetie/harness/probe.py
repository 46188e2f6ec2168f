"""Whether a provider starts: ``python -m edgetie.harness.probe`` runs one product on it.

What onnxruntime lists it was built with; drivers and libraries may still be missing.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgetie.errors import EdgetieError
from edgetie.runtime.session import write_optimized


def _main() -> None:
    request = json.load(sys.stdin)
    x = ir.Value(name="x", shape=ir.Shape([1, 16]), type=ir.TensorType(ir.DataType.FLOAT))
    weight = ir.Value(
        name="weight", const_value=ir.tensor(np.eye(16, dtype=np.float32), name="weight")
    )
    node = ir.node("MatMul", [x, weight])
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", x.type, x.shape
    graph = ir.Graph([x], [y], nodes=[node], initializers=[weight], opset_imports={"": 17})
    answer: dict[str, object]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        ir.save(ir.Model(graph, ir_version=8), path)
        try:
            optimized = Path(folder) / "optimized.onnx"
            answer = {"nodes": write_optimized(path, optimized, request["provider"])}
        except EdgetieError as error:
            answer = {"error": {"type": type(error).__name__, "message": str(error)}}
    print(json.dumps(answer))


if __name__ == "__main__":
    _main()
