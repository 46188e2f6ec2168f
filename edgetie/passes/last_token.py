"""The last token of each row taken before the head, not after it."""

from __future__ import annotations

import onnx_ir as ir

from edgetie.bundle import LAST_TOKEN_NODE
from edgetie.passes._base import GraphPass, insert, replace

_ROWWISE = {
    "Add", "Sub", "Mul", "Div", "Tanh", "Cast", "MatMul", "Relu", "Gelu", "Erf", "Sigmoid",
    "RMSNormalization", "LayerNormalization",
}  # fmt: skip
"""Operators whose result for one token depends on that token alone (constants apart)."""


class LastToken(GraphPass):
    """Moves the GatherND that selects each row's last token up, above the head and its norm.

    The head is then multiplied with one row per sequence in prefill too, and the logits of a whole
    prompt, often the largest tensor of a run, never exist.
    """

    name = "last_token"

    def rewrite(self, model: ir.Model) -> None:
        select = next((n for n in model.graph if n.name == LAST_TOKEN_NODE), None)
        while select is not None and self._above(select):
            self.changed += 1

    def _above(self, select: ir.Node) -> bool:
        """Move ``select`` in front of the node that feeds it, if that works row by row."""
        value = select.inputs[0]
        node = value.producer() if value is not None else None
        if value is None or node is None or node.op_type not in _ROWWISE:
            return False
        if len(value.uses()) != 1 or value.is_graph_output():
            return False
        moving = [i for i, x in enumerate(node.inputs) if x is not None and not _fixed(x)]
        if len(moving) != 1 or (node.op_type == "MatMul" and moving != [0]):
            return False
        source = node.inputs[moving[0]]
        assert source is not None
        if source.shape is None or len(source.shape) != 3:
            return False
        result = select.outputs[0]
        select.replace_input_with(0, source)
        value.shape = result.shape
        replace(result, value)
        # now: node uses source, select makes result from source; let node use result
        node.replace_input_with(moving[0], result)
        result.shape = ir.Shape([source.shape[0], 1, source.shape[2]])
        result.type = source.type
        assert select.graph is not None
        select.graph.remove(select)
        insert(node, select)
        return True


def _fixed(value: ir.Value) -> bool:
    """Whether a value is the same at every run: a constant, or a form of one."""
    if value.const_value is not None:
        return True
    node = value.producer()
    return node is not None and all(x is not None and _fixed(x) for x in node.inputs)
