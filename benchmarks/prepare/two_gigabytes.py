"""A chain of products of 2 GB, whose table stands in the file again, transposed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, save

ROWS, WIDTH, INNER, LAYERS = 151936, 1024, 2048, 96

output = Path(sys.argv[1])
random = np.random.default_rng(0)
table = random.standard_normal((ROWS, WIDTH), np.float32) * np.float32(0.02)
tensors: list[TensorProto] = []
with (output / "large.data").open("wb") as data:

    def add(name: str, array: np.ndarray) -> None:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": "large.data", "offset": data.tell(), "length": array.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        data.write(np.ascontiguousarray(array).data)
        tensors.append(tensor)

    add("table", table)
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["x0"])]
    for i in range(LAYERS):
        shape = (WIDTH, INNER) if i % 2 == 0 else (INNER, WIDTH)
        add(f"w{i}", random.standard_normal(shape, np.float32) * np.float32(0.02))
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]))
    add("head", table.T)
    nodes.append(helper.make_node("MatMul", [f"x{LAYERS}", "head"], ["logits"]))

graph = helper.make_graph(
    nodes,
    "large",
    [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", ROWS])],
    tensors,
)
opsets = [helper.make_opsetid("", 21)]
save(helper.make_model(graph, opset_imports=opsets, ir_version=10), output / "large.onnx")
