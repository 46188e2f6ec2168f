"""Root mean square norms as one operator (Zhang & Sennrich 2019; ONNX RMSNormalization-23)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import initializer, insert, replace
from edgetie.graph.matching import constant, last_dimension, only_user, producer, scalar
from edgetie.passes.base import GraphPass


class FuseRmsNorm(GraphPass):
    """``x * 1/sqrt(mean(x²) + ε) * weight`` becomes RMSNormalization, casts around it included."""

    name = "rms_norm"

    def rewrite(self, model: ir.Model) -> None:
        for node in list(model.graph):
            if node.op_type == "ReduceMean":
                self._at(model.graph, node)

    def _at(self, graph: ir.Graph, mean: ir.Node) -> None:
        square = producer(mean.inputs[0], "Pow", "Mul")
        axes = constant(mean.inputs[1]) if len(mean.inputs) > 1 else None
        if square is None or axes is None:
            return
        x = square.inputs[0]
        assert x is not None
        squared = (
            scalar(square.inputs[1]) == 2 if square.op_type == "Pow" else square.inputs[1] is x
        )
        rank = len(x.shape) if x.shape is not None else None
        if not squared or axes.reshape(-1).tolist() not in ([-1], [(rank or 0) - 1]):
            return
        add = only_user(mean.outputs[0], "Add")
        root = only_user(add.outputs[0], "Sqrt") if add else None
        if add is None or root is None:
            return
        epsilon = scalar(add.inputs[1] if add.inputs[0] is mean.outputs[0] else add.inputs[0])
        scaled = _normalised(root, x)
        if epsilon is None or scaled is None:
            self.skipped.append(f"{mean.name}: a mean of squares that is no RMS norm")
            return
        size = last_dimension(x)
        if size is None or x.dtype is None:
            return
        result, tensor = _with_weight(scaled.outputs[0], size)
        source = producer(x, "Cast")
        stash = 1
        if source is not None and source.inputs[0] is not None and result.dtype != x.dtype:
            x = source.inputs[0]
        dtype = x.dtype
        if dtype is None or result.dtype not in (None, dtype):
            self.skipped.append(f"{mean.name}: an RMS norm that changes its type")
            return
        if tensor is None:
            scale = initializer(graph, f"ones.{size}.{dtype.name}", np.ones(size, dtype.numpy()))
        else:
            scale = tensor
        norm = ir.node(
            "RMSNormalization",
            [x, scale],
            {"axis": -1, "epsilon": float(epsilon), "stash_type": stash},
            name=f"rms_norm.{self.changed}",
        )
        last = result.producer()
        assert last is not None
        insert(last, norm)
        replace(result, norm.outputs[0])
        self.changed += 1


def _normalised(root: ir.Node, x: ir.Value) -> ir.Node | None:
    """``x * Reciprocal(root)`` or ``x / root``."""
    inverse = only_user(root.outputs[0], "Reciprocal", "Div")
    if inverse is None:
        return None
    if inverse.op_type == "Div":
        if inverse.inputs[0] is x and inverse.inputs[1] is root.outputs[0]:
            return inverse
        if scalar(inverse.inputs[0]) != 1:
            return None
    product = only_user(inverse.outputs[0], "Mul")
    if product is None or x not in product.inputs:
        return None
    return product


def _with_weight(value: ir.Value, size: int) -> tuple[ir.Value, ir.Value | None]:
    """Follow casts and the product with the norm's weight, a vector of ``size``."""
    current = value
    cast = only_user(current, "Cast")
    if cast is not None:
        current = cast.outputs[0]
    product = only_user(current, "Mul")
    if product is not None:
        other = product.inputs[1] if product.inputs[0] is current else product.inputs[0]
        assert other is not None
        if other.const_value is not None and tuple(other.const_value.shape) == (size,):
            return product.outputs[0], other
    return current, None
