"""Let the tied head read the embedding table as it is stored."""

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import initializer, insert, replace
from edgetie.graph.matching import attribute_ints, operator, producer, weight
from edgetie.passes.base import GraphPass

_GEMM_WITHOUT_BIAS = 11  # from this opset on, Gemm needs no third input
_SHAPE_WITH_RANGE = 15  # from this opset on, Shape has a start and an end


class TiedHeadGemm(GraphPass):
    """Rewrites ``MatMul(h, Transpose(W))`` into ``Gemm(h, W, transB=1)``.

    ONNX Runtime would fold the Transpose into a second table when a session starts.
    """

    def rewrite(self, model: ir.Model) -> None:
        for graph in model.graphs():
            for node in list(graph):
                if operator(node) == "MatMul":
                    self._rewrite_matmul(model.graph, node)

    def _rewrite_matmul(self, graph: ir.Graph, node: ir.Node) -> None:
        h, transpose = node.inputs[0], producer(node.inputs[1], "Transpose")
        tensor = weight(transpose.inputs[0]) if transpose else None
        if transpose is None or attribute_ints(transpose, "perm") == [0, 1]:
            return
        if h is None or tensor is None or len(tensor.shape) != 2:
            return
        if not tensor.dtype.is_floating_point():
            return
        is_matrix = h.shape is not None and len(h.shape) == 2
        opset = graph.opset_imports.get("", 1)
        if opset < (_GEMM_WITHOUT_BIAS if is_matrix else _SHAPE_WITH_RANGE):
            label = node.name or node.outputs[0].name
            self.skipped.append(f"{label} reads a transposed table: the opset is too old for Gemm")
            return
        vocabulary, width = tensor.shape.numpy()
        tape = ir.tape.Tape()

        def vector(label: str, *numbers: int) -> ir.Value:
            return initializer(graph, f"head.{label}", np.array(numbers, np.int64))

        flat = h
        if not is_matrix:
            flat = tape.op("Reshape", [h, vector(f"flat.{width}", -1, width)])
        logits = tape.op("Gemm", [flat, transpose.inputs[0]], {"transB": 1}, name=node.name)
        if not is_matrix:
            leading = tape.op("Shape", [h], {"start": 0, "end": -1})
            last = vector(f"rows.{vocabulary}", vocabulary)
            shape = tape.op("Concat", [leading, last], {"axis": 0})
            logits = tape.op("Reshape", [logits, shape], {"allowzero": 1})
        insert(node, *tape.nodes)
        replace(node.outputs[0], logits)
        self.changed += 1
