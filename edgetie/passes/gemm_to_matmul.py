"""Write every projection as ``MatMul(x, W[in, out])``, followed by ``Add(bias)`` if it has one."""

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.editing import initializer, insert, replace
from edgetie.graph.matching import (
    attribute_ints,
    last_dimension,
    only_user,
    operator,
    producer,
    same_shape,
    weight,
)
from edgetie.passes.base import GraphPass


class GemmToMatMul(GraphPass):
    """Rewrites Gemm, and MatMul over a transposed weight, into MatMul over ``W[in, out]``.

    The weight becomes a lazy tensor: its bytes are transposed when the file is written. A tied
    weight keeps its Transpose, for the pass ``tied_head_gemm``.
    """

    def rewrite(self, model: ir.Model) -> None:
        for graph in model.graphs():
            for node in list(graph):
                if operator(node) == "Gemm":
                    self._rewrite_gemm(node)
        common.RemoveUnusedNodesPass()(model)  # a replaced Gemm would still use its weight
        for node in list(model.graph):
            if operator(node) == "Transpose":
                self._transpose_weight(model.graph, node)

    def _rewrite_gemm(self, node: ir.Node) -> None:
        """Rewrite ``Reshape(Gemm(Reshape(x), W, b))`` into ``MatMul(x, W) + b``."""
        attributes = node.attributes
        if attributes.get_int("transA", 0) or any(
            attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")
        ):
            return
        x, matrix = node.inputs[:2]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        assert x is not None
        result = node.outputs[0]
        restore, flatten = only_user(result, "Reshape"), producer(x, "Reshape")
        if restore is not None and flatten is not None and _is_vector(bias):
            source = flatten.inputs[0]
            assert source is not None
            same_width = last_dimension(source) == last_dimension(x)
            if same_width and same_shape(source, restore.outputs[0], end=-1):
                x, result = source, restore.outputs[0]
        tape = ir.tape.Tape()
        if attributes.get_int("transB", 0):
            matrix = tape.op("Transpose", [matrix], {"perm": [1, 0]})
        output = tape.op("MatMul", [x, matrix], name=node.name)
        if bias is not None:
            output.shape, output.type = result.shape, result.type
            output = tape.op("Add", [output, bias])
        insert(node, *tape.nodes)
        replace(result, output)
        self.changed += 1

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
        transposed = ir.LazyTensor(
            lambda t=tensor: ir.tensor(np.ascontiguousarray(t.numpy().T)),  # type: ignore[misc]
            dtype=tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()[::-1]),
            name=source.name,
        )
        name = str(source.name)
        if only_use:
            graph.initializers.pop(name)  # the transposed tensor takes its name
        else:
            name += ".transposed"
        replace(node.outputs[0], initializer(graph, name, transposed))
        self.changed += 1


def _is_vector(bias: ir.Value | None) -> bool:
    """Whether a bias, if there is one, is the same for every token."""
    shape = bias.shape if bias is not None else ir.Shape([])
    return shape is not None and (len(shape) < 2 or (len(shape) == 2 and shape[0] == 1))
