"""Fuse root mean square norms (Zhang & Sennrich 2019) into ONNX RMSNormalization-23."""

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import initializer, insert, replace
from edgetie.graph.matching import (
    constant,
    last_dimension,
    only_user,
    other_operand,
    producer,
    scalar,
)
from edgetie.passes.base import GraphPass


class FuseRmsNorm(GraphPass):
    """Fuses ``x * 1/sqrt(mean(x²) + ε) * weight`` and the casts around it."""

    def rewrite(self, model: ir.Model) -> None:
        for node in list(model.graph):
            if node.op_type == "ReduceMean":
                self._fuse(model.graph, node)

    def _fuse(self, graph: ir.Graph, mean: ir.Node) -> None:
        x = _squared(mean)
        add = only_user(mean.outputs[0], "Add")
        root = only_user(add.outputs[0], "Sqrt") if add else None
        if x is None or add is None or root is None:
            return
        epsilon = scalar(other_operand(add, mean.outputs[0]))
        normalized = _divided(x, root)
        if epsilon is None or normalized is None:
            self.skipped.append(f"{mean.name}: a mean of squares that is not an RMS norm")
            return
        size = last_dimension(x)
        if size is None or x.dtype is None:
            return
        result, scale = _scaled(normalized, size)
        cast = producer(x, "Cast")
        if cast is not None and cast.inputs[0] is not None and result.dtype != x.dtype:
            x = cast.inputs[0]
        dtype = x.dtype
        if dtype is None or result.dtype not in (None, dtype):
            self.skipped.append(f"{mean.name}: an RMS norm that changes its type")
            return
        if scale is None:
            scale = initializer(graph, f"ones.{size}.{dtype.name}", np.ones(size, dtype.numpy()))
        norm = ir.node(
            "RMSNormalization",
            [x, scale],
            {"axis": -1, "epsilon": float(epsilon), "stash_type": ir.DataType.FLOAT.value},
            name=f"rms_norm.{self.changed}",
        )
        last = result.producer()
        assert last is not None
        insert(last, norm)
        replace(result, norm.outputs[0])
        self.changed += 1


def _squared(mean: ir.Node) -> ir.Value | None:
    """Return the x of a mean of ``x²`` over the last axis."""
    square = producer(mean.inputs[0], "Pow", "Mul")
    axes = constant(mean.inputs[1]) if len(mean.inputs) > 1 else None
    x = square.inputs[0] if square is not None else None
    if square is None or x is None or axes is None:
        return None
    rank = len(x.shape) if x.shape is not None else 0
    if axes.reshape(-1).tolist() not in ([-1], [rank - 1]):
        return None
    is_power = square.op_type == "Pow"
    is_square = scalar(square.inputs[1]) == 2 if is_power else square.inputs[1] is x
    return x if is_square else None


def _divided(x: ir.Value, root: ir.Node) -> ir.Value | None:
    """Return ``x * Reciprocal(root)``, ``x * (1 / root)`` or ``x / root``."""
    inverse = only_user(root.outputs[0], "Reciprocal", "Div")
    if inverse is None:
        return None
    if inverse.op_type == "Div":
        if inverse.inputs[0] is x and inverse.inputs[1] is root.outputs[0]:
            return inverse.outputs[0]
        if scalar(inverse.inputs[0]) != 1:
            return None
    multiply = only_user(inverse.outputs[0], "Mul")
    return multiply.outputs[0] if multiply is not None and x in multiply.inputs else None


def _scaled(value: ir.Value, size: int) -> tuple[ir.Value, ir.Value | None]:
    """Follow a cast and the multiplication with the norm's weight, a vector of ``size``."""
    cast = only_user(value, "Cast")
    if cast is not None:
        value = cast.outputs[0]
    multiply = only_user(value, "Mul")
    if multiply is not None:
        other = other_operand(multiply, value)
        assert other is not None
        if other.const_value is not None and tuple(other.const_value.shape) == (size,):
            return multiply.outputs[0], other
    return value, None
