"""A graph of one attention between its projections."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto
from small_graphs import graph, node, random

CACHE = ["batch", 2, "past", 16]
FEEDS = {
    "x": random(1, 5, 16, seed=3),
    "past_key": np.zeros((1, 2, 0, 16), np.float32),
    "past_value": np.zeros((1, 2, 0, 16), np.float32),
    "last": np.array([4], np.int32),
    "total": np.array([5], np.int32),
}


def attention_graph(*, packed: bool, bias: bool) -> ir.Model:
    """Q, K and V of 16 channels, 4 heads over 2 of 16 channels each, and an output projection."""
    widths = {"qkv": 128} if packed else {"q": 64, "k": 32, "v": 32}
    constants = {name: 0.3 * random(16, width) for name, width in widths.items()}
    constants["out"] = random(64, 16, seed=1)
    nodes = []
    for name, width in widths.items():
        product = f"{name}.product" if bias else f"{name}.values"
        nodes.append(node("MatMul", ["x", name], [product]))
        if bias:
            constants[f"{name}.bias"] = random(width, seed=2)
            nodes.append(node("Add", [product, f"{name}.bias"], [f"{name}.values"]))
    inputs = ["qkv.values", "", ""] if packed else ["q.values", "k.values", "v.values"]
    nodes += [
        node(
            "GroupQueryAttention", [*inputs, "past_key", "past_value", "last", "total"],
            ["sums", "present_key", "present_value"],
            domain="com.microsoft", num_heads=4, kv_num_heads=2,
        ),
        node("MatMul", ["sums", "out"], ["y"]),
    ]  # fmt: skip
    shape = ["batch", "sequence", 16]
    shapes = {"x": shape, "past_key": CACHE, "past_value": CACHE, "last": ["batch"], "total": [1]}
    types = {"last": TensorProto.INT32, "total": TensorProto.INT32}
    return graph(nodes, constants, shapes, shape, types=types)
