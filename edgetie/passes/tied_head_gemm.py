"""The tied head in a form that reads the table as it is stored.

``logits = h Wᵀ`` arrives as a MatMul over a Transpose of the table. ONNX Runtime folds that
Transpose when a session starts, into a second table in the graph. Gemm takes the transposition as
an attribute: the table stays one initializer, its packed copy takes the place of the file's pages,
and the product is a third faster than one with the table on the left.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import initializer, insert, replace
from edgetie.graph.matching import attribute_ints, producer, weight
from edgetie.graph.operators import operator
from edgetie.passes.base import GraphPass

_GEMM_WITHOUT_BIAS = 11  # the opset from which on Gemm needs no third input
_SHAPE_OF_SOME_AXES = 15  # the opset from which on Shape takes a start and an end


class TiedHeadGemm(GraphPass):
    """``MatMul(h, Transpose(W))`` with a W used elsewhere becomes ``Gemm(h, W, transB=1)``."""

    name = "head"

    def rewrite(self, model: ir.Model) -> None:
        for graph in model.graphs():
            for node in list(graph):
                if operator(node) == "MatMul":
                    self._at(model.graph, node)

    def _at(self, graph: ir.Graph, node: ir.Node) -> None:
        transpose = producer(node.inputs[1], "Transpose")
        h = node.inputs[0]
        tensor = weight(transpose.inputs[0]) if transpose else None
        if transpose is not None and attribute_ints(transpose, "perm") == [0, 1]:
            return
        if transpose is None or h is None or tensor is None or len(tensor.shape) != 2:
            return
        rows, columns = tensor.shape.numpy()
        if not tensor.dtype.is_floating_point():
            return
        flat_already = h.shape is not None and len(h.shape) == 2
        opset = graph.opset_imports.get("", 1)
        if opset < (_GEMM_WITHOUT_BIAS if flat_already else _SHAPE_OF_SOME_AXES):
            label = node.name or node.outputs[0].name
            self.skipped.append(f"{label} reads a transposed table: the opset is too old for Gemm")
            return

        def vector(label: str, *numbers: int) -> ir.Value:
            return initializer(graph, f"head.{label}", np.array(numbers, np.int64))

        nodes: list[ir.Node] = []
        flat = h
        if not flat_already:
            nodes.append(ir.node("Reshape", [h, vector(f"flat.{columns}", -1, columns)]))
            flat = nodes[-1].outputs[0]
        nodes.append(ir.node("Gemm", [flat, transpose.inputs[0]], {"transB": 1}, name=node.name))
        if not flat_already:
            product = nodes[-1].outputs[0]
            nodes.append(ir.node("Shape", [h], {"start": 0, "end": -1}))
            leading = nodes[-1].outputs[0]
            nodes.append(ir.node("Concat", [leading, vector(f"rows.{rows}", rows)], {"axis": 0}))
            shape = nodes[-1].outputs[0]
            nodes.append(ir.node("Reshape", [product, shape], {"allowzero": 1}))
        insert(node, *nodes)
        replace(node.outputs[0], nodes[-1].outputs[0])
        self.changed += 1
