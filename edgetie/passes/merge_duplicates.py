"""Merge initializers of equal content."""

import itertools
from collections.abc import Hashable

import onnx_ir as ir

from edgetie.graph.constants import OVERRIDABLE_IR_VERSION
from edgetie.graph.editing import initializer
from edgetie.graph.external_data import byte_range
from edgetie.graph.matching import operator, same_shape
from edgetie.graph.nodes import Nodes
from edgetie.passes.base import GraphPass
from edgetie.ties.equal_weights import equal_groups
from edgetie.ties.groups import all_initializers

_VIEWS_BEFORE_GATHER = {"Identity", "Cast", "DequantizeLinear"}


class MergeDuplicates(GraphPass):
    """Merges initializers with equal elements, those of subgraphs too.

    The embedding table, which a Gather reads, stays. Users of a transposed copy read it through a
    Transpose, or through Gemm's own attribute. A copy in another shape stays a separate entry: ONNX
    Runtime would fold a Reshape of the table into a copy when a session starts.

    Args:
        reshape: merge copies in another shape too, which are then read through a Reshape.

    Attributes:
        merged: the names of removed initializers, each with the name of the one that replaced it.
        aliases: initializers that equal another one in another shape, each with that other. A
            writer lets them share its byte range.
    """

    def __init__(self, *, reshape: bool = False) -> None:
        super().__init__()
        self.reshape = reshape
        self.merged: dict[str, str] = {}
        self.aliases: dict[ir.Value, ir.Value] = {}

    def rewrite(self, model: ir.Model) -> None:
        self._merge_entries(model)
        for duplicates in equal_groups(all_initializers(model)):
            group = [copy for copy in duplicates if not is_input_or_output(copy.value, model)]
            for copy in duplicates:
                if copy not in group:
                    others = ", ".join(str(c.value.name) for c in duplicates if c is not copy)
                    self.skipped.append(f"{copy.value.name}: is {others}, and an input or output")
            if len(group) < 2:
                continue
            original = min(group, key=lambda copy: _preference(copy.value))
            move_to_main_graph(model, original.value)
            for copy in group:
                if copy is not original:
                    transposed = copy.transposed != original.transposed
                    self._merge(original.value, copy.value, transposed)

    def _merge_entries(self, model: ir.Model) -> None:
        """Merge entries over the same bytes that have the same shape, or all of one type."""
        first: dict[Hashable, ir.Value] = {}
        for value in all_initializers(model):
            source, tensor = byte_range(value), value.const_value
            if source is None or tensor is None or is_input_or_output(value, model):
                continue
            key = (source, tensor.dtype, None if self.reshape else tuple(tensor.shape.numpy()))
            original = first.setdefault(key, value)
            if original is not value:
                move_to_main_graph(model, original)
                self._merge(original, value, transposed=False)

    def _merge(self, original: ir.Value, copy: ir.Value, transposed: bool) -> None:
        if transposed and not can_read_transposed(copy, original):
            self.skipped.append(f"{copy.name}: is {original.name} transposed and in another shape")
            return
        has_other_shape = not transposed and not same_shape(copy, original)
        if has_other_shape and not self.reshape:
            self.aliases[copy] = original
        else:
            if transposed:
                redirect_to_transpose(copy, original)
            elif has_other_shape:
                _redirect_to_reshape(copy, original)
            else:
                ir.convenience.replace_all_uses_with(copy, original)
            _remove(copy)
            self.merged[str(copy.name)] = str(original.name)
        self.changed += 1


def _preference(value: ir.Value) -> tuple[bool, bool]:
    """Order what may stay: embedding tables first, then other matrices."""
    return not _is_embedding(value), not _is_matrix(value)


def _is_matrix(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 2


def _is_embedding(value: ir.Value) -> bool:
    """Whether a Gather reads it, directly or through an operator that keeps its layout."""
    for node, index in value.uses():
        if index == 0 and _is_gather(node):
            return True
        if index == 0 and operator(node) in _VIEWS_BEFORE_GATHER and node.outputs:
            return any(_is_gather(user) for user, _ in node.outputs[0].uses())
    return False


def _is_gather(node: ir.Node) -> bool:
    return operator(node).startswith("Gather")


def is_input_or_output(value: ir.Value, model: ir.Model) -> bool:
    """Whether an initializer must stay: a graph's output, or an input that a caller may override.

    Before IR version 4 every initializer was among the inputs.
    """
    overridable = value.is_graph_input() and (model.ir_version or 0) >= OVERRIDABLE_IR_VERSION
    return value.is_graph_output() or overridable


def _graph_of(value: ir.Value) -> ir.Graph:
    assert isinstance(value.graph, ir.Graph)
    return value.graph


def _remove(value: ir.Value) -> None:
    """Remove an initializer from its graph."""
    graph = _graph_of(value)
    graph.initializers.pop(str(value.name))
    if value.is_graph_input():
        graph.inputs.remove(value)


def move_to_main_graph(model: ir.Model, value: ir.Value) -> None:
    """Move an initializer of a subgraph to the main graph, which every subgraph can read."""
    graph = value.graph
    if graph is model.graph or not isinstance(graph, ir.Graph):
        return
    graph.initializers.pop(str(value.name))
    used = ir.convenience.create_value_mapping(model.graph)
    numbered = (f"{value.name}.{number}" for number in itertools.count(1))
    names = itertools.chain([str(value.name)], numbered)
    value.name = next(name for name in names if name not in used)
    model.graph.register_initializer(value)


def can_read_transposed(copy: ir.Value, original: ir.Value) -> bool:
    """Whether ``copy`` is a matrix and ``original`` has the shape of its transpose."""
    if copy.shape is None or original.shape is None or not _is_matrix(copy):
        return False
    return tuple(copy.shape.numpy()) == tuple(original.shape.numpy())[::-1]


def read_transposed(graph: ir.Graph, copy: ir.Value, original: ir.Value) -> ir.Value:
    """Replace ``copy`` by its transpose, a matrix of another graph.

    Returns:
        The initializer that replaced it: the elements of ``original`` in their layout.
    """
    name = str(copy.name)
    _remove(copy)
    copy.name = f"{name}.before"
    value = initializer(graph, name, original.const_value)
    redirect_to_transpose(copy, value)
    return value


def redirect_to_transpose(copy: ir.Value, original: ir.Value) -> None:
    """Let the users of ``copy`` read ``original`` transposed."""
    for node, index in list(copy.uses()):
        if operator(node) == "Gemm" and index in (0, 1):
            name = "transB" if index == 1 else "transA"
            flag = int(not node.attributes.get_int(name, 0))
            node.attributes[name] = ir.AttrInt64(name, flag)
            node.replace_input_with(index, original)
            continue
        nodes = Nodes(_graph_of(original))
        nodes.insert_for_use(node, index, nodes.transpose(original))


def _redirect_to_reshape(copy: ir.Value, original: ir.Value) -> None:
    """Let the users of ``copy`` read ``original`` in its shape."""
    assert copy.shape is not None
    for node, index in list(copy.uses()):
        nodes = Nodes(_graph_of(original))
        shape = nodes.integers(f"{copy.name}.shape", copy.shape.numpy())
        nodes.insert_for_use(node, index, nodes("Reshape", original, shape))
