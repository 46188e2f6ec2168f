"""Store matrices of other float types in float32, which quantizing starts from."""

import numpy as np
import onnx_ir as ir

from edgetie.graph.constant_values import constant_values
from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.editing import replace_initializer, transformed
from edgetie.graph.matching import operator
from edgetie.graph.nodes import Nodes
from edgetie.passes.base import GraphPass

_OTHER_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_READERS = {"Gather", "MatMul", "Gemm", "FusedMatMul", "Einsum", "EmbedLayerNormalization"}


class WidenWeights(GraphPass):
    """Turns float16, bfloat16 and double matrices that are looked up or multiplied into float32.

    A Cast restores the type for users that need it. Values of 16 bits stay as they are.
    """

    def rewrite(self, model: ir.Model) -> None:
        weights = constant_values(model)
        read = {
            weight: None  # in graph order: the same bundle at every call
            for node in model.graph.all_nodes()
            if operator(node) in _READERS
            for value in node.inputs
            if value is not None
            for weight in sorted(weights.get(value, ()), key=lambda each: str(each.name))
        }
        for weight in read:
            tensor = weight.const_value
            if (
                tensor is not None
                and tensor.dtype in _OTHER_TYPES
                and len(tensor.shape) == 2
                and tensor.size >= MIN_ELEMENTS
                and weight.graph is model.graph
                and not weight.is_graph_output()
            ):
                self._widen(model.graph, weight, tensor)

    def _widen(self, graph: ir.Graph, weight: ir.Value, tensor: ir.TensorProtocol) -> None:
        wide = transformed(tensor, lambda array: array.astype(np.float32), dtype=ir.DataType.FLOAT)
        value = replace_initializer(graph, weight, wide)
        for node, index in list(weight.uses()):
            result = node.outputs[0]
            target = node.attributes.get_int("to", 0) if operator(node) == "Cast" else 0
            if target == ir.DataType.FLOAT and not result.is_graph_output():
                ir.convenience.replace_all_uses_with(result, value)
                continue
            nodes = Nodes(graph)
            nodes.insert_for_use(node, index, nodes.cast(value, tensor.dtype))
        self.changed += 1
