"""Write a convolution of one position with a tied weight as a MatMul with it."""

import onnx_ir as ir

from edgetie.graph.constant_values import ConstantValues, constant_values, static_shape
from edgetie.graph.matching import attribute_ints, operator, rank
from edgetie.graph.nodes import Nodes
from edgetie.passes.base import GraphPass


class ConvToMatMul(GraphPass):
    """Rewrites a Conv with a kernel of one position whose weight has other uses too.

    Others stay: of an untied one nothing is gained.
    """

    def rewrite(self, model: ir.Model) -> None:
        weights = constant_values(model)
        for node in list(model.graph.all_nodes()):
            if operator(node) == "Conv" and _is_product(node, weights):
                _rewrite(model.graph, node)
                self.changed += 1


def _is_product(node: ir.Node, weights: ConstantValues) -> bool:
    x, kernel = node.inputs[:2]
    shape = static_shape(kernel) if kernel is not None else None
    if x is None or kernel is None or shape is None or rank(x) != len(shape):
        return False
    defaults = {"pads": 0, "strides": 1, "kernel_shape": 1}
    plain = all(
        size == default
        for name, default in defaults.items()
        for size in attribute_ints(node, name) or []
    )
    has_padding = node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return (
        plain
        and not has_padding
        and node.attributes.get_int("group", 1) == 1
        and all(size == 1 for size in shape[2:])
        and any(_has_other_uses(weight, kernel) for weight in weights.get(kernel, ()))
    )


def _has_other_uses(weight: ir.Value, kernel: ir.Value) -> bool:
    return len(weight.uses()) > 1 or len(kernel.uses()) > 1


def _rewrite(graph: ir.Graph, node: ir.Node) -> None:
    nodes = Nodes(graph)
    x, kernel = node.inputs[:2]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    assert x is not None
    assert kernel is not None
    axes, shape = rank(x), static_shape(kernel) or (0, 0)
    matrix = nodes("Reshape", kernel, nodes.integers(f"conv.{shape[0]}_{shape[1]}", shape[:2]))
    channels_last = nodes("Transpose", x, perm=[0, *range(2, axes), 1])
    result = nodes("MatMul", channels_last, nodes.transpose(matrix))
    nodes.nodes[-1].name = node.name
    if bias is not None:
        result = nodes("Add", result, bias)
    output = nodes("Transpose", result, perm=[0, axes - 1, *range(1, axes - 1)])
    nodes.insert_instead_of(node, output)
