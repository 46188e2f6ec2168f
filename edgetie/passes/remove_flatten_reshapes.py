"""Products of three-dimensional activations without the Reshapes around them."""

from __future__ import annotations

import onnx_ir as ir

from edgetie.graph.editing import replace
from edgetie.graph.matching import last_dimension, only_user, producer, same_shape
from edgetie.graph.operators import operator
from edgetie.passes.base import GraphPass


class RemoveFlattenReshapes(GraphPass):
    """``Reshape(MatMul(Reshape(x), W))`` that only flattens and restores is ``MatMul(x, W)``.

    A head in the form of a Gemm comes like this; MatMulNBits takes any rank.
    """

    name = "unflatten"

    def rewrite(self, model: ir.Model) -> None:
        for node in list(model.graph):
            if operator(node) != "MatMul":
                continue
            flat = producer(node.inputs[0], "Reshape")
            restored = only_user(node.outputs[0], "Reshape")
            if flat is None or restored is None or flat.inputs[0] is None:
                continue
            x, result, inner = flat.inputs[0], restored.outputs[0], node.outputs[0]
            columns = _columns(node)
            if columns is None or last_dimension(x) != columns or not _leading_equal(x, result):
                continue
            node.replace_input_with(0, x)
            inner.shape = result.shape
            replace(result, inner)
            self.changed += 1


def _columns(node: ir.Node) -> int | None:
    """Rows of the right-hand side, seen through a Transpose; ``None`` if it is no matrix, but a
    batch of them."""
    turned = producer(node.inputs[1], "Transpose")
    value = turned.inputs[0] if turned is not None else node.inputs[1]
    shape = value.shape if value is not None else None
    size = shape[-1 if turned is not None else 0] if shape is not None and len(shape) == 2 else None
    return size if isinstance(size, int) else None


def _leading_equal(a: ir.Value, b: ir.Value) -> bool:
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    left, right = (ir.Value(shape=ir.Shape(list(v.shape)[:-1])) for v in (a, b))  # type: ignore[arg-type]
    return same_shape(left, right)
