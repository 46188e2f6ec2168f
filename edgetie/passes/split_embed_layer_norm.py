"""Write EmbedLayerNormalization as look-ups, their sum and a LayerNormalization."""

from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import insert, take_over
from edgetie.graph.matching import operator
from edgetie.graph.nodes import Nodes, sizes_of
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
        sizes, width = sizes_of(node.outputs[0]), words.shape[-1] if words.shape else None
        if sizes is None and (leading := sizes_of(ids)) is not None and width is not None:
            sizes = [*leading, width]

        def floats(op_type: str, *values: ir.Value | None, **attributes: Any) -> ir.Value:
            return nodes.typed(op_type, *values, sizes=sizes, dtype=words.dtype, **attributes)

        place_ids = position_ids or _range(nodes, ids)
        place_sizes = sizes_of(place_ids)
        if place_sizes is not None and width is not None:
            place_sizes = [*place_sizes, width]
        places = nodes.typed("Gather", positions, place_ids, sizes=place_sizes, dtype=words.dtype)
        total = floats("Add", floats("Gather", words, ids), places)
        if kinds is not None and segments is not None:
            total = floats("Add", total, floats("Gather", kinds, segments))
        epsilon = node.attributes.get_float("epsilon", _EPSILON)
        results = [floats("LayerNormalization", total, gamma, beta, axis=-1, epsilon=epsilon)]
        results.append(_count(nodes, mask, ids))
        results.append(total)
        insert(node, *nodes.nodes)
        for old, new in zip(node.outputs, results, strict=False):
            if old.uses() or old.is_graph_output():
                take_over(old, new)
        self.changed += 1


def _range(nodes: Nodes, ids: ir.Value) -> ir.Value:
    """Add the positions ``(sequence,)`` of ids ``(batch, sequence)``."""
    zero, one = (nodes.constant(f"embed.{number}", number, np.int64) for number in (0, 1))
    length = nodes("Gather", nodes("Shape", ids), one)
    sizes, kind = sizes_of(ids), ir.DataType.INT64
    return nodes.typed("Range", zero, length, one, sizes=sizes and sizes[1:], dtype=kind)


def _count(nodes: Nodes, mask: ir.Value | None, ids: ir.Value) -> ir.Value:
    """Add the second output: the number of tokens that the mask keeps; zeros without a mask."""
    kind = ir.DataType.INT32
    if mask is None:
        mask = nodes.typed("Mul", ids, nodes.number(0, ids.dtype or kind), sizes=sizes_of(ids),
                           dtype=ids.dtype)  # fmt: skip
    sizes = sizes_of(ids)
    counts = nodes.along("ReduceSum", mask, 1, keepdims=0)
    return nodes.typed("Cast", counts, sizes=sizes and sizes[:1], dtype=kind, to=int(kind))
