"""Select the last token of each sequence before the head instead of after it."""

from __future__ import annotations

import onnx_ir as ir

from edgetie.bundle.names import LAST_TOKEN_NODE
from edgetie.graph.editing import initializer, insert, replace
from edgetie.graph.matching import last_dimension, producer, scalar
from edgetie.passes.base import GraphPass

_TOKENWISE = {
    "Add", "Sub", "Mul", "Div", "Tanh", "Cast", "MatMul", "Relu", "Gelu", "Erf", "Sigmoid",
    "RMSNormalization", "LayerNormalization",
}  # fmt: skip
"""Operators whose result for one token depends on that token and on constants alone."""


class SelectLastToken(GraphPass):
    """Moves the GatherND that selects the last token of each sequence before the head and its norm.

    In prefill, too, the head is then multiplied with one token per sequence. The logits of a whole
    prompt, often the largest tensor of a run, never exist.
    """

    def rewrite(self, model: ir.Model) -> None:
        select = next((n for n in model.graph if n.name == LAST_TOKEN_NODE), None)
        while select is not None and self._move_select(select):
            self.changed += 1
        if self.changed:
            model.graph.sort()

    def _move_select(self, select: ir.Node) -> bool:
        """Move ``select`` before the node that it reads, if that one works token by token."""
        value = select.inputs[0]
        node = value.producer() if value is not None else None
        if value is None or node is None:
            return False
        if node.op_type == "Reshape":
            return _move_reshape(node)
        index = _token_input(node)
        if index is None or len(value.uses()) != 1 or value.is_graph_output():
            return False
        source = node.inputs[index]
        assert source is not None
        assert source.shape is not None
        selected = select.outputs[0]
        select.replace_input_with(0, source)
        value.shape = selected.shape
        replace(selected, value)
        node.replace_input_with(index, selected)
        selected.shape = ir.Shape([source.shape[0], 1, source.shape[2]])
        selected.type = source.type
        assert select.graph is not None
        select.graph.remove(select)
        insert(node, select)
        return True


def _token_input(node: ir.Node) -> int | None:
    """Return the index of the input ``(batch, sequence, ...)`` that a node maps token by token."""
    variable = [i for i, x in enumerate(node.inputs) if x is not None and not _is_constant(x)]
    if node.op_type not in _TOKENWISE or len(variable) != 1:
        return None
    index = variable[0]
    source = node.inputs[index]
    if (node.op_type, index) == ("MatMul", 1) or source is None or len(source.shape or ()) != 3:
        return None
    return index


def _move_reshape(reshape: ir.Node) -> bool:
    """Move a Reshape that only splits tokens into batch and sequence before the node it reads.

    That node must work token by token.
    """
    result, (value, shape) = reshape.outputs[0], reshape.inputs[:2]
    node = value.producer() if value is not None else None
    index = _token_input(node) if node is not None else None
    if value is None or shape is None or node is None or index is None:
        return False
    if len(result.uses()) != 1 or len(value.uses()) != 1 or value.is_graph_output():
        return False
    width = last_dimension(value)
    if width is None or width != last_dimension(result) or len(result.shape or ()) != 3:
        return False
    source, graph = node.inputs[index], reshape.graph
    assert source is not None
    assert source.shape is not None
    assert result.shape is not None
    assert graph is not None
    tape = ir.tape.Tape()
    sizes = producer(shape, "Concat")
    if sizes is not None and scalar(sizes.inputs[-1]) == -1:
        any_width = sizes.outputs[0]
    else:
        start, end = (initializer(graph, f"last_token.{i}", [i]) for i in (0, 2))
        minus_one = initializer(graph, "last_token.width", [-1])
        leading = tape.op("Slice", [shape, start, end])
        any_width = tape.op("Concat", [leading, minus_one], {"axis": 0})
    reshaped = tape.op("Reshape", [source, any_width])
    reshaped.shape = ir.Shape([*result.shape[:2], source.shape[2]])
    reshaped.type = source.type
    node.replace_input_with(index, reshaped)
    insert(reshape, *tape.nodes)
    value.shape = result.shape
    replace(result, value)
    graph.remove(reshape, safe=True)
    return True


def _is_constant(value: ir.Value) -> bool:
    """Whether a value is the same in every run: a constant, or computed from constants."""
    if value.const_value is not None:
        return True
    node = value.producer()
    return node is not None and all(x is not None and _is_constant(x) for x in node.inputs)
