"""Remove the Reshapes around matrix products of three-dimensional activations."""

import onnx_ir as ir

from edgetie.graph.editing import replace
from edgetie.graph.matching import last_dimension, only_user, operator, producer, same_shape
from edgetie.passes.base import GraphPass


class RemoveFlattenReshapes(GraphPass):
    """Turns ``Reshape(MatMul(Reshape(x), W))`` into ``MatMul(x, W)`` if the shapes allow it.

    A head in the form of a Gemm arrives like this. MatMulNBits accepts any rank.
    """

    def rewrite(self, model: ir.Model) -> None:
        for node in list(model.graph):
            if operator(node) != "MatMul":
                continue
            flatten = producer(node.inputs[0], "Reshape")
            restore = only_user(node.outputs[0], "Reshape")
            if flatten is None or restore is None or flatten.inputs[0] is None:
                continue
            x, result, output = flatten.inputs[0], restore.outputs[0], node.outputs[0]
            size = _input_size(node)
            if size is None or last_dimension(x) != size or not same_shape(x, result, end=-1):
                continue
            node.replace_input_with(0, x)
            output.shape = result.shape
            replace(result, output)
            self.changed += 1


def _input_size(node: ir.Node) -> int | None:
    """Return the number of input channels of a MatMul with a matrix, perhaps a transposed one."""
    transpose = producer(node.inputs[1], "Transpose")
    value = node.inputs[1] if transpose is None else transpose.inputs[0]
    if value is None or value.shape is None or len(value.shape) != 2:
        return None
    size = value.shape[0 if transpose is None else 1]
    return size if isinstance(size, int) else None
