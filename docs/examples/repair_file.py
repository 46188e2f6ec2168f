"""Merge the two copies of an embedding table in an ONNX file.

python repair_file.py OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import edgetie


def write_untied_model(path: Path) -> None:
    """Write a model whose head has a transposed copy of the embedding table."""
    table = np.random.default_rng(0).normal(size=(256, 64)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "head"], ["logits"]),
        ],
        "untied",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", 256])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(table.T.copy(), "head")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)


def main(output: Path) -> None:
    write_untied_model(output / "untied.onnx")
    report = edgetie.tie_model(output / "untied.onnx", output / "tied.onnx")
    print(f"{report.bytes_before:,} bytes before, {report.bytes_after:,} after")
    print(f"merged: {report.merged}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
