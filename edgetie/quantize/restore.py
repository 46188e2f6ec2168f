"""Products taken back to floating point, where 8 bits cost too much."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from edgetie.content import MIN_ELEMENTS
from edgetie.passes._base import GraphPass, initializer, insert, replace, weight


def float_products(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """The matrices ``(K, N)`` of a float graph that are multiplied with and nothing else."""
    found = {}
    for name, value in model.graph.initializers.items():
        tensor = weight(value)
        uses = list(value.uses())
        if tensor is None or len(tensor.shape) != 2 or tensor.size < MIN_ELEMENTS or not uses:
            continue
        if all(node.op_type == "MatMul" and index == 1 for node, index in uses):
            found[name] = tensor
    return found


def quantized_products(model: ir.Model) -> dict[str, list[ir.Node]]:
    """The MatMulNBits nodes of a graph by the name of their codes, in graph order."""
    found: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        if node.op_type == "MatMulNBits" and node.inputs[1] is not None:
            found.setdefault(str(node.inputs[1].name), []).append(node)
    return found


def stored_bytes(node: ir.Node) -> int:
    """Of the codes and scales that a MatMulNBits reads."""
    tensors = (value.const_value for value in node.inputs[1:3] if value is not None)
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


class Restore(GraphPass):
    """Turns MatMulNBits back into MatMul.

    Needs codes named as the weights they stand for, as :class:`~edgetie.quantize.weight_only
    .WeightOnly` leaves them; leaves initializers of these names in floating point.

    Args:
        names: of the weights.
        tensors: the float weights ``(K, N)``, by name.
    """

    name = "restore"

    def __init__(self, names: Collection[str], tensors: Mapping[str, ir.TensorProtocol]) -> None:
        super().__init__()
        self.names = names
        self.tensors = tensors

    def rewrite(self, model: ir.Model) -> None:
        graph = model.graph
        for name, nodes in quantized_products(model).items():
            if name not in self.names:
                continue
            constants = [value for value in nodes[0].inputs[1:3] if value is not None]
            for value in constants:
                graph.initializers.pop(str(value.name))
            matrix = initializer(graph, name, self.tensors[name])
            for node in nodes:
                _replace(node, matrix)
            self.changed += 1


def _replace(node: ir.Node, matrix: ir.Value) -> None:
    bias = node.inputs[5] if len(node.inputs) > 5 else None
    result = node.outputs[0]
    nodes = [ir.node("MatMul", [node.inputs[0], matrix], name=node.name)]
    if bias is not None:
        nodes.append(ir.node("Add", [nodes[0].outputs[0], bias]))
        nodes[0].outputs[0].shape, nodes[0].outputs[0].type = result.shape, result.type
    insert(node, *nodes)
    replace(result, nodes[-1].outputs[0])
    assert node.graph is not None
    node.graph.remove(node, safe=True)
