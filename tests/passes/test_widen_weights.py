"""Matrices of 16 bits become float32, and their users get what they read before."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from small_graphs import SHAPE, WIDTH, X, graph, leave, node, random, rewrite

from edgetie.passes.widen_weights import WidenWeights

TABLE = random(WIDTH, WIDTH)


@pytest.mark.parametrize("dtype", [np.float16, ir.DataType.BFLOAT16.numpy()])
def test_a_cast_is_replaced(dtype: type) -> None:
    nodes = [
        node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        node("MatMul", ["x", "wide"], ["y"]),
    ]
    model = graph(nodes, {"w": TABLE.astype(dtype)}, shapes={"wide": [WIDTH, WIDTH]})
    assert rewrite(model, WidenWeights(), x=X) == {"MatMul": 1}
    tensor = model.graph.initializers["w"].const_value
    assert tensor.dtype == ir.DataType.FLOAT
    np.testing.assert_array_equal(tensor.numpy(), TABLE.astype(dtype).astype(np.float32))


def test_users_of_16_bits_read_them() -> None:
    nodes = [
        node("Cast", ["x"], ["narrow"], to=TensorProto.FLOAT16),
        node("MatMul", ["narrow", "w"], ["product"]),
        node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
    ]
    half = dict.fromkeys(("narrow", "product"), TensorProto.FLOAT16)
    shapes = dict.fromkeys(half, SHAPE)
    model = graph(nodes, {"w": TABLE.astype(np.float16)}, shapes=shapes, types=half)
    assert rewrite(model, WidenWeights(), x=X) == {"Cast": 3, "MatMul": 1}


def test_other_matrices_stay() -> None:
    nodes = [node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT), node("Add", ["x", "wide"], ["y"])]
    shape = ["batch", WIDTH, WIDTH]
    leave(graph(nodes, {"w": TABLE.astype(np.float16)}, {"x": shape}, shape), WidenWeights())
