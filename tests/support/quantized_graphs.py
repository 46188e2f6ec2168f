"""Small graphs of linear operators and embeddings, and their quantization."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import TensorProto
from small_graphs import graph, node, random

from edgetie.passes.base import run_passes
from edgetie.quantize.formats.weight_format import WeightFormat
from edgetie.quantize.quantize_weights import QuantizeWeightsPass

OUT, IN = 96, 64
TOKENS = 200


def linear(weight: np.ndarray, shape: tuple[int, ...] = (2, 5), bias: Any = None) -> ir.Model:
    """``y = x W + bias`` with ``W`` stored ``(in, out)`` and ``x`` of this leading shape."""
    constants = {"w": weight} | ({} if bias is None else {"bias": bias})
    nodes = [node("MatMul", ["x", "w"], ["y" if bias is None else "product"], name="linear")]
    if bias is not None:
        nodes.append(node("Add", ["product", "bias"], ["y"]))
    inputs = {"x": [*shape, weight.shape[0]]}
    return graph(nodes, constants, inputs, [*shape, weight.shape[1]], opset=21)


def tied(embedding: np.ndarray, opset: int = 21) -> ir.Model:
    """``y = embedding[ids] embeddingᵀ``, as a tied head has it."""
    tokens, width = embedding.shape
    return graph(
        [
            node("Gather", ["embedding", "ids"], ["x"], name="gather"),
            node("Transpose", ["embedding"], ["t"], perm=[1, 0]),
            node("MatMul", ["x", "t"], ["y"], name="head"),
        ],
        {"embedding": embedding},
        {"ids": ["batch", "sequence"]},
        ["batch", "sequence", tokens],
        {"x": ["batch", "sequence", width]},
        {"ids": TensorProto.INT64},
        opset,
    )


IDS = np.array([[3, 0, 199, 7], [11, 5, 5, 64]])


def weights(*shape: int, seed: int = 1) -> np.ndarray:
    return random(*(shape or (IN, OUT)), seed=seed)


def quantize(
    model: ir.Model, linear_format: WeightFormat, embedding_format: WeightFormat, **options: Any
) -> QuantizeWeightsPass:
    """Quantize all weights of a graph."""
    hessians = options.pop("hessians", {})
    step = QuantizeWeightsPass(embedding_format, linear_format, hessians, **options)
    run_passes(model, [], [step])  # aliases become one again when files are written
    return step


def arrays(model: ir.Model) -> dict[str, np.ndarray]:
    """The initializers of a graph."""
    return {n: v.const_value.numpy() for n, v in model.graph.initializers.items() if v.const_value}


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
