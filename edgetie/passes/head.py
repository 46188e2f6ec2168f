"""The tied head in the form that ONNX Runtime runs straight from the mapped table.

ONNX Runtime folds a Transpose of a constant and packs the constant right-hand side of a MatMul:
either makes a second, private copy of the table that Gather still needs. The left-hand side of a
MatMul is used as it lies in memory. So ``logits = h Wᵀ`` is computed as ``(W hᵀ)ᵀ``: transposing
the few rows of activations costs nothing next to reading the table.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgetie.passes._base import (
    GraphPass,
    initializer,
    insert,
    producer,
    replace,
    weight,
)


class Head(GraphPass):
    """``MatMul(h, Transpose(W))`` with a W used elsewhere becomes ``Transpose(MatMul(W, hᵀ))``."""

    name = "head"

    def rewrite(self, model: ir.Model) -> None:
        for node in list(model.graph):
            if node.op_type == "MatMul":
                self._at(model.graph, node)

    def _at(self, graph: ir.Graph, node: ir.Node) -> None:
        transpose = producer(node.inputs[1], "Transpose")
        h = node.inputs[0]
        tensor = weight(transpose.inputs[0]) if transpose else None
        if transpose is None or h is None or tensor is None or len(tensor.shape) != 2:
            return
        rows, columns = tensor.shape.numpy()
        rank = len(h.shape) if h.shape is not None else 0
        if rank not in (2, 3):
            self.skipped.append(f"{node.name}: hidden states of rank {rank}")
            return

        def vector(label: str, *numbers: int) -> ir.Value:
            return initializer(graph, f"head.{label}", np.array(numbers, np.int64))

        flat = h
        nodes: list[ir.Node] = []
        if rank == 3:
            nodes.append(ir.node("Reshape", [h, vector(f"flat.{columns}", -1, columns)]))
            flat = nodes[-1].outputs[0]
        nodes.append(ir.node("Transpose", [flat], {"perm": [1, 0]}))
        nodes.append(ir.node("MatMul", [transpose.inputs[0], nodes[-1].outputs[0]], name=node.name))
        nodes.append(ir.node("Transpose", [nodes[-1].outputs[0]], {"perm": [1, 0]}))
        if rank == 3:
            product = nodes[-1].outputs[0]
            nodes.append(ir.node("Shape", [h], {"start": 0, "end": 2}))
            leading = nodes[-1].outputs[0]
            nodes.append(ir.node("Concat", [leading, vector(f"rows.{rows}", rows)], {"axis": 0}))
            nodes.append(ir.node("Reshape", [product, nodes[-1].outputs[0]]))
        insert(node, *nodes)
        replace(node.outputs[0], nodes[-1].outputs[0])
        self.changed += 1
