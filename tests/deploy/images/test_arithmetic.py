"""Arithmetic in a graph, against Python's."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgetie.deploy.images.arithmetic import Number, concatenate, integers_below
from edgetie.graph.nodes import Nodes


@pytest.mark.parametrize(("a", "b"), [(7, 2), (10, 4), (3, 9), (5, 5), (1, 65535), (6, 4)])
def test_numbers_are_those_of_python(a: int, b: int) -> None:
    inputs = [
        ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64))
        for name in "ab"
    ]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": 18})
    nodes = Nodes(graph)
    x, y = (Number(nodes, value) for value in inputs)
    terms = (
        x + y, (x - y).maximum(0), x * y, x // y, x % 3, x / y, 9 / y, (x / y).truncate(),
        (x / y).floor(), (x / y).ceil(), (x / y).round(), (x / y).map("Sqrt"), x.minimum(y),
        (x > y).select(x, 3), (x < y).select(4, y), x.equals(y).select(1, 0), x * 0.5,
    )  # fmt: skip
    expected = (
        a + b, max(a - b, 0), a * b, a // b, a % 3, a / b, 9 / b, int(a / b),
        math.floor(a / b), math.ceil(a / b), round(a / b), math.sqrt(a / b), min(a, b),
        a if a > b else 3, 4 if a < b else b, int(a == b), a * 0.5,
    )  # fmt: skip
    vectors = concatenate(nodes, x, 2, y), integers_below(x).value
    graph.extend(nodes.nodes)
    graph.outputs.extend([*(term.value for term in terms), *vectors])
    model = ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    *found, shape, below = session.run(None, {"a": np.array(a), "b": np.array(b)})
    assert [value.item() for value in found] == list(expected)
    assert shape.tolist() == [a, 2, b]
    assert below.tolist() == list(range(a))
