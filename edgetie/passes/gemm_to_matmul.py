"""Write every projection as ``MatMul(x, W[in, out])``, followed by ``Add(bias)`` if it has one."""

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.editing import (
    initializer,
    insert,
    replace,
    replace_initializer,
    take_over,
    transformed,
)
from edgetie.graph.matching import (
    attribute_ints,
    constant,
    last_dimension,
    only_user,
    operator,
    producer,
    rank,
    same_shape,
    weight,
)
from edgetie.graph.nodes import Nodes
from edgetie.passes.base import GraphPass

_LARGEST_BIAS = 1 << 20  # elements


class GemmToMatMul(GraphPass):
    """Rewrites Gemm, FusedMatMul, and MatMul over a transposed weight, into MatMul over
    ``W[in, out]``.

    Factors other than 1 (``alpha``, ``beta``) multiply the product and the bias.

    The weight becomes a lazy tensor: its bytes are transposed when the file is written. A tied
    weight keeps its Transpose, for the pass ``tied_head_gemm``.
    """

    def rewrite(self, model: ir.Model) -> None:
        for graph in model.graphs():
            for node in list(graph):
                if operator(node) in ("Gemm", "FusedMatMul"):
                    self.changed += gemm_to_matmul(model.graph, node)
        common.RemoveUnusedNodesPass()(model)  # a replaced Gemm would still use its weight
        for node in list(model.graph):
            if operator(node) == "Transpose":
                self._transpose_weight(model.graph, node)

    def _transpose_weight(self, graph: ir.Graph, node: ir.Node) -> None:
        source = node.inputs[0]
        tensor = weight(source)
        if source is None or tensor is None or len(tensor.shape) != 2:
            return
        if attribute_ints(node, "perm") == [0, 1]:
            replace(node.outputs[0], source)
            self.changed += 1
            return
        only_use = len(source.uses()) == 1
        if tensor.size >= MIN_ELEMENTS and not only_use:
            return
        transposed = transformed(tensor, np.transpose, tensor.shape.numpy()[::-1])
        if only_use:
            result = replace_initializer(graph, source, transposed)
        else:
            result = initializer(graph, f"{source.name}.transposed", transposed)
        replace(node.outputs[0], result)
        self.changed += 1


def gemm_to_matmul(graph: ir.Graph, node: ir.Node) -> bool:
    """Rewrite ``Reshape(Gemm(Reshape(x), W, b))`` into ``MatMul(x, W) + b``, and FusedMatMul.

    Args:
        graph: the main graph, which gets the constants.
        node: a Gemm or FusedMatMul.

    Returns:
        Whether it was rewritten: a transposed input may have axes of unknown number.
    """
    attributes, nodes = node.attributes, Nodes(graph)
    inputs = list(node.inputs[:2])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    x, result = inputs[0], node.outputs[0]
    assert x is not None
    restore, flatten = only_user(result, "Reshape"), producer(x, "Reshape")
    is_plain = operator(node) == "Gemm" and not attributes.get_int("transA", 0)
    if is_plain and restore is not None and flatten is not None and _is_vector(bias):
        source = flatten.inputs[0]
        assert source is not None
        same_width = last_dimension(source) == last_dimension(x)
        if same_width and same_shape(source, restore.outputs[0], end=-1):
            inputs[0], result = source, restore.outputs[0]
    moves_batch = any(attributes.get_int(name, 0) for name in ("transBatchA", "transBatchB"))
    swapped = [index for index in (0, 1) if attributes.get_int(("transA", "transB")[index], 0)]
    axes = [2 if operator(node) == "Gemm" or value is None else rank(value) for value in inputs]
    if moves_batch or any(axes[index] < 2 for index in swapped):
        return False
    for index in swapped:
        value = inputs[index]
        assert value is not None
        inputs[index] = nodes.transpose(value, axes[index])
    output = nodes("MatMul", *inputs)
    nodes.nodes[-1].name = node.name
    output.shape, output.type = result.shape, result.type
    output = _scale(nodes, output, attributes.get_float("alpha", 1.0))
    if bias is not None:
        output = nodes("Add", output, _scale(nodes, bias, attributes.get_float("beta", 1.0)))
    insert(node, *nodes.nodes)
    take_over(result, output)
    return True


def _scale(nodes: Nodes, value: ir.Value, factor: float) -> ir.Value:
    """Multiply a value, a constant one at once."""
    if factor == 1.0:
        return value
    array, dtype = constant(value, _LARGEST_BIAS), value.dtype or ir.DataType.FLOAT
    if array is not None:
        return nodes.constant(f"{value.name}.times.{factor}", array * factor, array.dtype)
    return nodes("Mul", value, nodes.number(factor, dtype))


def _is_vector(bias: ir.Value | None) -> bool:
    """Whether a bias, if there is one, is the same for every token."""
    shape = bias.shape if bias is not None else ir.Shape([])
    return shape is not None and (len(shape) < 2 or (len(shape) == 2 and shape[0] == 1))
