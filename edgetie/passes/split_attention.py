"""Write ONNX Runtime's Attention as a projection and a MultiHeadAttention."""

import numpy as np
import onnx_ir as ir

from edgetie.graph.constant_values import constant_values, static_shape
from edgetie.graph.constants import MICROSOFT
from edgetie.graph.matching import attribute_ints, operator, rank
from edgetie.graph.nodes import Nodes
from edgetie.passes.base import GraphPass

_SIZES_AS_INPUT = 13  # the first opset in which Split has an input for sizes
_PASSED_ON = ("num_heads", "scale", "unidirectional", "mask_filter_value")
_OPERANDS = {0: "input", 1: "weights", 2: "bias", 3: "mask", 5: "attention bias"}


class SplitAttention(GraphPass):
    """Rewrites Attention with a constant weight, which holds the projections of queries, keys and
    values, so that a MatMul multiplies with it. Attention with a cache or rotations stays.
    """

    def rewrite(self, model: ir.Model) -> None:
        weights = constant_values(model)
        self._batches = [each.shape[0] for each in model.graph.inputs if each.shape]
        for node in list(model.graph.all_nodes()):
            if operator(node) != "Attention" or node.domain != MICROSOFT:
                continue
            matrix = node.inputs[1]
            if matrix is not None and weights.get(matrix) and self._is_plain(node):
                self._split(model.graph, node)

    def _is_plain(self, node: ir.Node) -> bool:
        """Whether a projection and a MultiHeadAttention compute the same."""
        others = [v for i, v in enumerate(node.inputs) if i not in _OPERANDS and v is not None]
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        shape = static_shape(node.inputs[1]) if node.inputs[1] is not None else None
        return (
            shape is not None
            and len(shape) == 2
            and not others
            and not any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
            and not node.attributes.get_int("do_rotary", 0)
            and (mask is None or self._is_mask(node.inputs[0], mask))
        )

    def _is_mask(self, x: ir.Value | None, mask: ir.Value) -> bool:
        """Whether a mask has a length for each batch item, or a flag for each token."""
        if rank(mask) != 1:
            return rank(mask) in (2, 3)
        (count,) = mask.shape or [0]
        return count in (self._batches if x is None or x.shape is None else x.shape[:1])

    def _split(self, graph: ir.Graph, node: ir.Node) -> None:
        nodes = Nodes(graph)
        inputs = [*node.inputs, *[None] * (6 - len(node.inputs))]
        x, matrix, bias, mask, _, attention_bias = inputs[:6]
        assert x is not None
        assert matrix is not None
        width = (static_shape(matrix) or (0, 0))[1]
        joint = nodes("MatMul", x, matrix)
        nodes.nodes[-1].name = f"{node.name}.projection"
        if bias is not None:
            joint = nodes("Add", joint, bias)
        parts = attribute_ints(node, "qkv_hidden_sizes") or [width // 3] * 3
        if graph.opset_imports.get("", 1) < _SIZES_AS_INPUT:
            split = nodes.op_multi_out(
                "Split", [joint], {"axis": -1, "split": parts}, num_outputs=3
            )
        else:
            name = f"attention.{'_'.join(map(str, parts))}"
            operands = [joint, nodes.integers(name, parts)]
            split = nodes.op_multi_out("Split", operands, {"axis": -1}, num_outputs=3)
        if mask is not None and rank(mask) == 1:
            mask = _mask_of_lengths(nodes, x, mask)
        options = {name: node.attributes[name] for name in _PASSED_ON if name in node.attributes}
        result = nodes(
            "MultiHeadAttention", *split, None, mask, attention_bias, domain=MICROSOFT, **options
        )
        nodes.insert_instead_of(node, result)
        self.changed += 1


def _mask_of_lengths(nodes: Nodes, x: ir.Value, lengths: ir.Value) -> ir.Value:
    """Add the mask ``(batch, sequence)`` of lengths ``(batch,)``."""
    kind = ir.DataType.INT32
    zero, one = (nodes.constant(f"attention.{number}", number, np.int64) for number in (0, 1))
    places = nodes("Range", zero, nodes("Gather", nodes("Shape", x), one), one)
    column = nodes.along("Unsqueeze", lengths, -1)
    flags = nodes("Less", nodes.cast(places, kind), nodes.cast(column, kind))
    return nodes("Cast", flags, to=kind)
