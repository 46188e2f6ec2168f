"""Linear operators of a graph: MatMuls with a constant weight, and Gathers of its rows."""

from dataclasses import dataclass

import onnx_ir as ir

from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.matching import attribute_ints, only_user, operator, producer, weight
from edgetie.quantize.weights.affine import Array

ROTATION_PREFIX = "rotate."
"""Prefix of the names of constants that rotate activations. They stay in floating point."""


@dataclass(frozen=True)
class LinearOp:
    """``output = x Wᵀ``.

    Attributes:
        node: the MatMul.
        weight: the initializer W.
        x: the activation.
        output: the result, transposed back if the MatMul has W on the left.
        transposed: whether W is stored ``(in, out)``, otherwise ``(out, in)``.
    """

    node: ir.Node
    weight: ir.Value
    x: ir.Value
    output: ir.Value
    transposed: bool

    @property
    def weight_on_left(self) -> bool:
        """Whether the node is ``MatMul(W, Transpose(x))``."""
        return self.node.inputs[0] is self.weight

    @property
    def in_channels(self) -> int:
        assert self.weight.const_value is not None
        return int(self.weight.const_value.shape.numpy()[0 if self.transposed else 1])

    @property
    def is_only_reader(self) -> bool:
        """Whether nothing else reads the weight, except Gathers of an ``(out, in)`` one."""
        readers = [use[0] for use in self.weight.uses() if self.transposed or not is_gather(*use)]
        if len(readers) != 1 or self.weight.is_graph_output():
            return False
        return self.node in (readers[0], only_user(readers[0].outputs[0]))

    @property
    def gathers(self) -> list[ir.Node]:
        """The nodes that gather rows of the weight."""
        return [node for node, index in self.weight.uses() if is_gather(node, index)]

    def read_weight(self) -> Array:
        """Return the weight as ``(out, in)``."""
        assert self.weight.const_value is not None
        array = self.weight.const_value.numpy()
        return array.T if self.transposed else array


def match_linear_op(node: ir.Node) -> LinearOp | None:
    """Match the MatMul of ``MatMul(x, W)``, ``MatMul(x, Transpose(W))`` or
    ``Transpose(MatMul(W, Transpose(x)))``.
    """
    if operator(node) != "MatMul":
        return None
    left, right = node.inputs
    output = node.outputs[0]
    assert left is not None
    assert right is not None
    if is_weight_matrix(right):
        return LinearOp(node, right, left, output, transposed=True)
    transpose = producer(right, "Transpose")
    source = transpose.inputs[0] if transpose is not None else None
    if transpose is None or source is None or not _swaps_last_axes(transpose):
        return None
    if is_weight_matrix(source):
        return LinearOp(node, source, left, output, transposed=False)
    back = only_user(output, "Transpose")
    if back is None or not is_weight_matrix(left) or not _swaps_last_axes(back):
        return None
    return LinearOp(node, left, source, back.outputs[0], transposed=False)


def find_linear_ops(value: ir.Value) -> list[LinearOp]:
    """Find the linear operators that read a weight."""
    nodes = []
    for user, _ in value.uses():
        is_transpose = operator(user) == "Transpose"
        nodes += [node for node, _ in user.outputs[0].uses()] if is_transpose else [user]
    matches = [match_linear_op(node) for node in nodes]
    return [match for match in matches if match is not None and match.weight is value]


def is_weight_matrix(value: ir.Value | None) -> bool:
    """Whether a value is a float32 initializer with two axes that is worth quantizing."""
    tensor = weight(value)
    return (
        value is not None
        and tensor is not None
        and tensor.dtype == ir.DataType.FLOAT
        and len(tensor.shape) == 2
        and tensor.size >= MIN_ELEMENTS
        and not str(value.name).startswith(ROTATION_PREFIX)
    )


def is_gather(node: ir.Node, index: int) -> bool:
    """Whether a node gathers rows of its input ``index``, as of an embedding."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    return operator(node) == "Gather" and index == 0 and axis == 0


def _swaps_last_axes(transpose: ir.Node) -> bool:
    """Whether a Transpose exchanges the last two axes only."""
    x, order = transpose.inputs[0], attribute_ints(transpose, "perm")
    if order is None:
        return x is not None and x.shape is not None and len(x.shape) == 2
    last = len(order) - 1
    return order == [*range(last - 1), last, last - 1]
