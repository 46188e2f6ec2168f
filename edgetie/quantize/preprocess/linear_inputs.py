"""Linear inputs: activations that only linear operators read.

Scaled or rotated, they change nothing in exact arithmetic if these operators' weights undo it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from edgetie.graph.editing import replace, transformed
from edgetie.graph.matching import operator, producer
from edgetie.quantize.preprocess.adapter_inputs import matrices, reads_for_adapter
from edgetie.quantize.weights.affine import Array
from edgetie.quantize.weights.linear_op import LinearOp, match_linear_op


@dataclass(frozen=True)
class LinearInput:
    """An activation ``(…, channels)`` and the linear operators that read it."""

    value: ir.Value
    linear_ops: tuple[LinearOp, ...]

    @property
    def channels(self) -> int:
        return self.linear_ops[0].in_channels


def find_linear_inputs(model: ir.Model) -> dict[str, LinearInput]:
    """Find all linear inputs of the main graph, by the activation's name, in graph order."""
    linear_inputs: dict[str, LinearInput] = {}
    for node in model.graph:
        value = _activation(match_linear_op(node))
        if value is None or value.is_graph_output() or str(value.name) in linear_inputs:
            continue
        matches = [match_linear_op(reader) for reader in _readers(value)]
        linear_ops = [each for each in matches if each is not None and each.is_only_reader]
        if len(linear_ops) == len(matches) and all(_activation(op) is value for op in linear_ops):
            linear_inputs[str(value.name)] = LinearInput(value, tuple(linear_ops))
    return linear_inputs


def _activation(linear_op: LinearOp | None) -> ir.Value | None:
    """The activation before it is flattened for ``MatMul(W, Transpose(Reshape(x)))``."""
    if linear_op is None:
        return None
    if not linear_op.weight_on_left:
        return linear_op.x
    flatten = producer(linear_op.x, "Reshape")
    return flatten.inputs[0] if flatten is not None else None


def _readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that compute with an activation, after Reshapes and Transposes if it has them.

    Adapters follow what is done to it, see :mod:`adapter_inputs`, and do not count.
    """
    readers = []
    for user, _ in value.uses():
        output = user.outputs[0]
        if operator(user) in ("Reshape", "Transpose") and not output.is_graph_output():
            readers += _readers(output) or [user]
        elif operator(user) != "Shape" and not reads_for_adapter(user):
            readers.append(user)
    return readers


def transform_weight(value: ir.Value, function: Callable[[Array], Array]) -> None:
    """Apply a function to an initializer's array when it is read. Its shape and dtype stay.

    An input of adapters has several arrays, to which it is applied at once.
    """
    arrays = matrices(value)
    if arrays is not None:
        arrays.update({name: function(array) for name, array in arrays.items()})
        return
    tensor = value.const_value
    assert tensor is not None
    value.const_value = transformed(tensor, function)


def insert_after(node: ir.Node, *new: ir.Node) -> None:
    """Insert nodes, the first of which reads ``node``, between it and all its other users, graph
    outputs included.
    """
    output = node.outputs[0]
    new_uses = [(user, index) for user, index in output.uses() if user in new]
    for index, each in enumerate(new):  # names in a subgraph must differ from those of outer values
        each.outputs[0].name = f"{output.name}.{each.op_type}.{index}"
    assert node.graph is not None
    node.graph.insert_after(node, new)
    replace(output, new[-1].outputs[0])
    for user, index in new_uses:
        user.replace_input_with(index, output)
