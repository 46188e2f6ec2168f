"""Find the part of a projection that computes the values of attention, which it adds up.

So the projection can do what is linear within a head, at no cost.
"""

from dataclasses import dataclass

import onnx_ir as ir

from edgetie.graph.matching import last_dimension, only_user, producer, weight
from edgetie.quantize.preprocess.adapter_inputs import input_up
from edgetie.quantize.preprocess.linear_inputs import LinearInput


@dataclass(frozen=True)
class ValueProjection:
    """The columns of a linear layer that compute attention's values.

    Attributes:
        parameters: the weight, the bias if there is one, and the input of adapters if there is one.
        start: the first such column.
        head_size: of each head.
    """

    parameters: tuple[ir.Value, ...]
    start: int
    head_size: int


def find_value_projection(linear_input: LinearInput) -> ValueProjection | None:
    """Find the projection whose values a linear input adds up; ``None`` if it does not."""
    attention = producer(linear_input.value, "GroupQueryAttention")
    if attention is None or attention.outputs[0] is not linear_input.value:
        return None
    heads, kv_heads = (
        attention.attributes[name].as_int() for name in ("num_heads", "kv_num_heads")
    )
    head_size = linear_input.channels // heads
    width = kv_heads * head_size
    is_joint = attention.inputs[2] is None  # queries, keys and values are one tensor
    start = (heads + kv_heads) * head_size if is_joint else 0
    parameters = projection_parameters(attention.inputs[0] if is_joint else attention.inputs[2])
    if any(shape[-1] != start + width or len(shape) > 2 for _, shape in parameters):
        return None
    values = tuple(value for value, _ in parameters)
    return ValueProjection(values, start, head_size) if values else None


def projection_parameters(output: ir.Value | None) -> list[tuple[ir.Value, tuple[int, ...]]]:
    """Find the bias, if there is one, and the weight of the linear layer that computes a value.

    Returns:
        Each with its shape, after them the input ``B`` if adapters add to the value; nothing if
        another node uses them or the value.
    """
    candidates, outputs = [], [output]
    adapters: list[tuple[ir.Value, tuple[int, ...]]] = []
    add = producer(output, "Add")
    up = input_up(add.inputs[1]) if add is not None else None
    width = last_dimension(up) if up is not None else None
    if add is not None and up is not None and width is not None:
        adapters = [(up, (0, width))]
        output = add.inputs[0]
        outputs.append(output)
        add = producer(output, "Add")
    if add is not None:
        left, right = add.inputs[:2]
        bias, output = (left, right) if weight(left) is not None else (right, left)
        candidates.append(bias)
        outputs.append(output)
    matmul = producer(output, "MatMul")
    candidates.append(matmul.inputs[1] if matmul is not None else None)
    parameters = [
        (value, tuple(tensor.shape.numpy()))
        for value in candidates
        if value is not None and (tensor := weight(value)) is not None and len(value.uses()) == 1
    ]
    is_alone = all(value is not None and only_user(value) is not None for value in outputs)
    return [*parameters, *adapters] if is_alone and len(parameters) == len(candidates) else []
