"""Where the values of attention come from: the part of a projection that makes them.

Attention weighs values and adds them up, so what is linear within a head can as well be done in
front of it, by the projection, for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgetie.graph.matching import only_user, producer, weight
from edgetie.quantize.preprocess.linear_inputs import LinearInput


@dataclass(frozen=True)
class ValueProjection:
    """Attention's values, ``width`` columns of a product from ``start`` on.

    Attributes:
        parts: the matrix, and the bias behind it if there is one, each with its first column.
        width: key-value heads times head size.
        head_size: of each head.
    """

    parts: tuple[tuple[ir.Value, int], ...]
    width: int
    head_size: int


def find_value_projection(linear_input: LinearInput) -> ValueProjection | None:
    """The values whose weighted sums the site is; ``None`` if it is not attention's output."""
    node = producer(linear_input.value, "GroupQueryAttention")
    if node is None or node.outputs[0] is not linear_input.value:
        return None
    heads, kv_heads = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
    head_size = linear_input.channels // heads
    width = kv_heads * head_size
    packed = node.inputs[2] is None
    made = node.inputs[0] if packed else node.inputs[2]
    start = (heads + kv_heads) * head_size if packed else 0
    parts = []
    if made is None or only_user(made) is None:
        return None
    add = producer(made, "Add")
    if add is not None:
        left, right = add.inputs[:2]
        bias, made = (left, right) if weight(left) is not None else (right, left)
        if not _whole(bias, start + width) or made is None or only_user(made) is None:
            return None
        parts.append(bias)
    product = producer(made, "MatMul")
    matrix = product.inputs[1] if product is not None else None
    if not _whole(matrix, start + width):
        return None
    parts.append(matrix)
    return ValueProjection(
        tuple((part, start) for part in parts if part is not None), width, head_size
    )


def _whole(value: ir.Value | None, columns: int) -> bool:
    """Whether it is a constant of so many columns that nothing else uses."""
    tensor = weight(value)
    return (
        value is not None
        and tensor is not None
        and len(value.uses()) == 1
        and len(tensor.shape) in (1, 2)
        and tensor.shape.numpy()[-1] == columns
    )
