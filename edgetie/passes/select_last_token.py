"""The last token of each row taken before the head, not after it."""

from __future__ import annotations

import onnx_ir as ir

from edgetie.bundle.names import LAST_TOKEN_NODE
from edgetie.graph.editing import initializer, insert, replace
from edgetie.graph.matching import last_dimension, producer, scalar
from edgetie.passes.base import GraphPass

_ROWWISE = {
    "Add", "Sub", "Mul", "Div", "Tanh", "Cast", "MatMul", "Relu", "Gelu", "Erf", "Sigmoid",
    "RMSNormalization", "LayerNormalization",
}  # fmt: skip
"""Operators whose result for one token depends on that token alone (constants apart)."""


class SelectLastToken(GraphPass):
    """Moves the GatherND that selects each row's last token up, above the head and its norm.

    The head is then multiplied with one row per sequence in prefill too, and the logits of a whole
    prompt, often the largest tensor of a run, never exist.
    """

    name = "last_token"

    def rewrite(self, model: ir.Model) -> None:
        select = next((n for n in model.graph if n.name == LAST_TOKEN_NODE), None)
        while select is not None and self._above(select):
            self.changed += 1
        if self.changed:
            model.graph.sort()

    def _above(self, select: ir.Node) -> bool:
        """Move ``select`` in front of the node that feeds it, if that works row by row."""
        value = select.inputs[0]
        node = value.producer() if value is not None else None
        if value is None or node is None:
            return False
        if node.op_type == "Reshape":
            return _above(node)
        moving = _moving(node)
        if moving is None or len(value.uses()) != 1 or value.is_graph_output():
            return False
        source = node.inputs[moving]
        assert source is not None
        assert source.shape is not None
        result = select.outputs[0]
        select.replace_input_with(0, source)
        value.shape = result.shape
        replace(result, value)
        # now: node uses source, select makes result from source; let node use result
        node.replace_input_with(moving, result)
        result.shape = ir.Shape([source.shape[0], 1, source.shape[2]])
        result.type = source.type
        assert select.graph is not None
        select.graph.remove(select)
        insert(node, select)
        return True


def _moving(node: ir.Node) -> int | None:
    """Which input ``(batch, sequence, ...)`` a node works on row by row."""
    moving = [i for i, x in enumerate(node.inputs) if x is not None and not _fixed(x)]
    if (
        node.op_type not in _ROWWISE
        or len(moving) != 1
        or (node.op_type, moving) == ("MatMul", [1])
    ):
        return None
    source = node.inputs[moving[0]]
    return moving[0] if source is not None and len(source.shape or ()) == 3 else None


def _above(reshape: ir.Node) -> bool:
    """Move a Reshape that only arranges rows anew, as batch and sequence, in front of the node that
    feeds it, if that works row by row.
    """
    result, (value, shape) = reshape.outputs[0], reshape.inputs[:2]
    node = value.producer() if value is not None else None
    moving = _moving(node) if node is not None else None
    if value is None or shape is None or node is None or moving is None:
        return False
    if len(result.uses()) != 1 or len(value.uses()) != 1 or value.is_graph_output():
        return False
    width = last_dimension(value)
    if width is None or width != last_dimension(result) or len(result.shape or ()) != 3:
        return False
    source = node.inputs[moving]
    assert source is not None
    assert source.shape is not None
    assert result.shape is not None
    graph = reshape.graph
    assert graph is not None
    sizes = producer(shape, "Concat")
    if sizes is None or scalar(sizes.inputs[-1]) != -1:
        first, second = (initializer(graph, f"last_token.{i}", [i]) for i in (0, 2))
        rows = ir.node("Slice", [shape, first, second])
        any_width = initializer(graph, "last_token.width", [-1])
        sizes = ir.node("Concat", [rows.outputs[0], any_width], {"axis": 0})
        insert(reshape, rows, sizes)
    arranged = ir.node("Reshape", [source, sizes.outputs[0]])
    arranged.outputs[0].shape = ir.Shape([*result.shape[:2], source.shape[2]])
    arranged.outputs[0].type = source.type
    node.replace_input_with(moving, arranged.outputs[0])
    insert(reshape, arranged)
    value.shape = result.shape
    replace(result, value)
    graph.remove(reshape, safe=True)
    return True


def _fixed(value: ir.Value) -> bool:
    """Whether a value is the same at every run: a constant, or a form of one."""
    if value.const_value is not None:
        return True
    node = value.producer()
    return node is not None and all(x is not None and _fixed(x) for x in node.inputs)
