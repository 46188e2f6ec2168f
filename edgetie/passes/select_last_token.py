"""Select the last token of each sequence before the head instead of after it."""

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
        while select is not None and _move_up(select):
            self.changed += 1
        if self.changed:
            model.graph.sort()


def _move_up(moved: ir.Node) -> bool:
    """Move a node before the one that it reads, if that one works token by token.

    If that one is a Reshape that only splits tokens into batch and sequence, move that instead.
    """
    value, result, graph = moved.inputs[0], moved.outputs[0], moved.graph
    node = value.producer() if value is not None else None
    if value is None or node is None or len(value.uses()) != 1 or value.is_graph_output():
        return False
    is_reshape = moved.op_type == "Reshape"
    if node.op_type == "Reshape" and not is_reshape:
        return _move_up(node)
    index, width = _token_input(node), last_dimension(value)
    same_width = width is not None and width == last_dimension(result)
    if index is None or (is_reshape and (not same_width or len(result.shape or ()) != 3)):
        return False
    source = node.inputs[index]
    assert source is not None
    assert source.shape is not None
    assert graph is not None
    leading: list[int | ir.SymbolicDim] = [source.shape[0], 1]
    if is_reshape:
        assert result.shape is not None
        leading = list(result.shape[:2])
        moved.replace_input_with(1, _any_width(graph, moved))
    moved.replace_input_with(0, source)
    value.shape = result.shape
    replace(result, value)
    node.replace_input_with(index, result)
    result.shape, result.type = ir.Shape([*leading, source.shape[2]]), source.type
    graph.remove(moved)
    insert(node, moved)
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


def _any_width(graph: ir.Graph, reshape: ir.Node) -> ir.Value | None:
    """Compute the shape of a Reshape with -1 as its last dimension."""
    shape = reshape.inputs[1]
    sizes = producer(shape, "Concat")
    if sizes is not None and scalar(sizes.inputs[-1]) == -1:
        return shape
    start, end = (initializer(graph, f"last_token.{i}", [i]) for i in (0, 2))
    minus_one = initializer(graph, "last_token.width", [-1])
    tape = ir.tape.Tape()
    leading = tape.op("Slice", [shape, start, end])
    output = tape.op("Concat", [leading, minus_one], {"axis": 0})
    insert(reshape, *tape.nodes)
    return output


def _is_constant(value: ir.Value) -> bool:
    """Whether a value is the same in every run: a constant, or computed from constants."""
    if value.const_value is not None:
        return True
    node = value.producer()
    return node is not None and all(x is not None and _is_constant(x) for x in node.inputs)
