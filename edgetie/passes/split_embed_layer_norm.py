"""Write EmbedLayerNormalization as look-ups, their sum and a LayerNormalization."""

import numpy as np
import onnx_ir as ir

from edgetie.graph.matching import operator
from edgetie.graph.nodes import Nodes
from edgetie.passes.base import GraphPass

_EPSILON = 1e-12  # the operator's default


class SplitEmbedLayerNorm(GraphPass):
    """Rewrites ONNX Runtime's EmbedLayerNormalization, whose tables cannot be quantized."""

    def rewrite(self, model: ir.Model) -> None:
        for node in list(model.graph.all_nodes()):
            if operator(node) == "EmbedLayerNormalization" and len(node.inputs) > 6:
                self._split(model.graph, node)

    def _split(self, graph: ir.Graph, node: ir.Node) -> None:
        nodes = Nodes(graph)
        inputs = [*node.inputs, *[None] * (9 - len(node.inputs))]
        ids, segments, words, positions, kinds, gamma, beta, mask, position_ids = inputs
        assert ids is not None
        assert words is not None
        assert positions is not None
        places = nodes("Gather", positions, position_ids or _range(nodes, ids))
        total = nodes("Add", nodes("Gather", words, ids), places)
        if kinds is not None and segments is not None:
            total = nodes("Add", total, nodes("Gather", kinds, segments))
        epsilon = node.attributes.get_float("epsilon", _EPSILON)
        norm = nodes("LayerNormalization", total, gamma, beta, axis=-1, epsilon=epsilon)
        nodes.insert_instead_of(node, norm, _count(nodes, mask, ids), total)
        self.changed += 1


def _range(nodes: Nodes, ids: ir.Value) -> ir.Value:
    """Add the positions ``(sequence,)`` of ids ``(batch, sequence)``."""
    zero, one = (nodes.constant(f"embed.{number}", number, np.int64) for number in (0, 1))
    positions = nodes("Range", zero, nodes("Gather", nodes("Shape", ids), one), one)
    if ids.shape is not None:  # ONNX does not infer it
        positions.shape = ir.Shape(ids.shape[1:])
    return positions


def _count(nodes: Nodes, mask: ir.Value | None, ids: ir.Value) -> ir.Value:
    """Add the second output: the number of tokens that the mask keeps; zeros without a mask."""
    if mask is None:
        mask = nodes("Mul", ids, nodes.number(0, ids.dtype or ir.DataType.INT32))
    return nodes.cast(nodes.along("ReduceSum", mask, 1, keepdims=0), ir.DataType.INT32)
