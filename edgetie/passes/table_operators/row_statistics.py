"""Compute what normalization of a matrix's rows subtracts and multiplies with."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import transformed
from edgetie.graph.matching import operator

_ROWS_AT_ONCE = 4096
_EPSILON = 1e-5  # the operators' default

Array = np.ndarray[Any, Any]


def row_statistics(
    node: ir.Node, tensor: ir.TensorProtocol
) -> tuple[ir.TensorProtocol | None, ir.TensorProtocol]:
    """Return means and factors of the rows of a matrix ``(n, k)``, float32 ``(n,)`` each.

    A normalized row is the row minus its mean, times its factor. They are computed when they are
    read.

    Args:
        node: LayerNormalization, RMSNormalization, SimplifiedLayerNormalization, LpNormalization.
        tensor: the matrix.

    Returns:
        ``None`` for means that the operator does not subtract.
    """
    op_type, epsilon = operator(node), node.attributes.get_float("epsilon", _EPSILON)
    power = node.attributes.get_int("p", 2)

    def mean(rows: Array) -> Array:
        return np.asarray(rows.mean(axis=1))

    def factor(rows: Array) -> Array:
        if op_type == "LpNormalization":
            norms = np.abs(rows).sum(axis=1) if power == 1 else np.linalg.norm(rows, axis=1)
            return np.asarray(np.where(norms > 0, 1 / np.where(norms > 0, norms, 1), 0))
        centered = rows - rows.mean(axis=1, keepdims=True) * (op_type == "LayerNormalization")
        return np.asarray(1 / np.sqrt(np.square(centered).mean(axis=1) + epsilon))

    means = _of_rows(tensor, mean) if op_type == "LayerNormalization" else None
    return means, _of_rows(tensor, factor)


def _of_rows(tensor: ir.TensorProtocol, function: Callable[[Array], Array]) -> ir.TensorProtocol:
    """Apply a function to some rows at a time, in double precision."""

    def compute(array: Array) -> Array:
        parts = [
            function(array[start : start + _ROWS_AT_ONCE].astype(np.float64))
            for start in range(0, len(array), _ROWS_AT_ONCE)
        ]
        return np.concatenate(parts).astype(np.float32)

    return transformed(tensor, compute, tensor.shape.numpy()[:1], ir.DataType.FLOAT)
