"""Initializers of equal content made one again."""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir as ir

from edgetie.graph.editing import initializer, insert
from edgetie.graph.external_data import byte_range
from edgetie.graph.operators import operator
from edgetie.passes.base import GraphPass
from edgetie.ties.equal_weights import DuplicateWeight, equal_groups
from edgetie.ties.groups import all_initializers

_OVERRIDABLE = 4
_SEEN_THROUGH = {"Identity", "Cast"}


class MergeDuplicates(GraphPass):
    """Merges initializers with equal elements, those of subgraphs too: a matrix stored twice.

    The copy that rows are looked up in stays; users of a transposed copy read it through a
    Transpose, or through Gemm's own attribute. One in another shape stays an entry of its own: a
    Reshape in its place would be folded into a copy when ONNX Runtime starts.

    Attributes:
        merged: the name of each initializer that is gone, and of the one that took its place.
        aliases: initializers that hold another's bytes in another shape, and that one; a writer
            lets them share its byte range.
    """

    name = "retie"

    def __init__(self) -> None:
        super().__init__()
        self.merged: dict[str, str] = {}
        self.aliases: dict[ir.Value, ir.Value] = {}

    def rewrite(self, model: ir.Model) -> None:
        self._join_entries(model)
        for twins in equal_groups(all_initializers(model)):
            group = [twin for twin in twins if not fixed(twin.value, model)]
            for twin in twins:
                if twin not in group:
                    others = ", ".join(str(t.value.name) for t in twins if t is not twin)
                    self.skipped.append(f"{twin.value.name}: is {others}, and an input or output")
            if len(group) < 2:
                continue
            keep = max(group, key=lambda twin: (_looked_up(twin.value), -group.index(twin)))
            hoist(model, keep.value)
            for twin in group:
                if twin is not keep:
                    self._merge(keep, twin)

    def _join_entries(self, model: ir.Model) -> None:
        """Make entries over the same bytes, and of the same shape, one."""
        first: dict[Hashable, ir.Value] = {}
        for value in all_initializers(model):
            where, tensor = byte_range(value), value.const_value
            if where is None or tensor is None or fixed(value, model):
                continue
            kept = first.setdefault((where, tensor.dtype, tuple(tensor.shape.numpy())), value)
            if kept is not value:
                hoist(model, kept)
                self._merge(DuplicateWeight(kept, "same"), DuplicateWeight(value, "same"))

    def _merge(self, keep: DuplicateWeight, twin: DuplicateWeight) -> None:
        kept, copy = keep.value, twin.value
        shapes = [tuple(v.shape.numpy()) if v.shape is not None else () for v in (kept, copy)]
        turned = (keep.form == "transposed") != (twin.form == "transposed")
        if not turned and shapes[0] == shapes[1]:
            ir.convenience.replace_all_uses_with(copy, kept)
        elif turned and can_read_transposed(copy, kept):
            _turn_users(copy, kept)
        elif turned:
            self.skipped.append(f"{copy.name}: is {kept.name} transposed and in another shape")
            return
        else:
            self.aliases[copy] = kept
            self.changed += 1
            return
        graph = copy.graph
        assert isinstance(graph, ir.Graph)
        graph.initializers.pop(str(copy.name))
        if copy.is_graph_input():
            graph.inputs.remove(copy)
        self.merged[str(copy.name)] = str(kept.name)
        self.changed += 1


def _looked_up(value: ir.Value) -> bool:
    """Whether rows of it are gathered, perhaps behind an operator that keeps its form."""
    for node, index in value.uses():
        if operator(node).startswith("Gather") and index == 0:
            return True
        if operator(node) in (*_SEEN_THROUGH, "DequantizeLinear") and index == 0 and node.outputs:
            return any(_is_gather(user) for user, _ in node.outputs[0].uses())
    return False


def _is_gather(node: ir.Node) -> bool:
    return operator(node).startswith("Gather")


def fixed(value: ir.Value, model: ir.Model) -> bool:
    """Whether an initializer must stay as it is: a graph's output, or an input that a caller may
    give another value (before IR version 4 every initializer stood among the inputs).
    """
    overridable = value.is_graph_input() and (model.ir_version or 0) >= _OVERRIDABLE
    return value.is_graph_output() or overridable


def hoist(model: ir.Model, value: ir.Value) -> None:
    """Move an initializer to the main graph, which every subgraph sees, if it is in another."""
    graph = value.graph
    if graph is model.graph or not isinstance(graph, ir.Graph):
        return
    graph.initializers.pop(str(value.name))
    taken = {v.name for g in model.graphs() for v in (*g.inputs, *g.initializers.values())}
    taken |= {v.name for g in model.graphs() for node in g for v in node.outputs}
    name, number = str(value.name), 0
    while name in taken:
        number += 1
        name = f"{value.name}.{number}"
    value.name = name
    model.graph.register_initializer(value)


def can_read_transposed(copy: ir.Value, kept: ir.Value) -> bool:
    """Whether ``copy`` is a matrix and ``kept`` has the shape of its transpose."""
    if copy.shape is None or kept.shape is None or len(copy.shape) != 2:
        return False
    return tuple(copy.shape.numpy()) == tuple(kept.shape.numpy())[::-1]


def read_transposed(graph: ir.Graph, copy: ir.Value, kept: ir.Value) -> ir.Value:
    """Put another graph's matrix in the place of ``copy``, its transpose.

    Returns:
        The initializer that took its place: the elements of ``kept`` as they lie there.
    """
    name = str(copy.name)
    graph.initializers.pop(name)
    copy.name = f"{name}.before"
    if copy.is_graph_input():
        graph.inputs.remove(copy)
    value = initializer(graph, name, kept.const_value)
    _turn_users(copy, value)
    return value


def _turn_users(copy: ir.Value, kept: ir.Value) -> None:
    """Let the users of ``copy`` read ``kept`` transposed."""
    for node, index in list(copy.uses()):
        if operator(node) == "Gemm" and index in (0, 1):
            name = "transB" if index == 1 else "transA"
            attribute = node.attributes.get(name)
            flag = int(not (attribute and attribute.as_int()))
            node.attributes[name] = ir.AttrInt64(name, flag)
            node.replace_input_with(index, kept)
            continue
        turned = ir.node("Transpose", [kept], {"perm": [1, 0]})
        insert(node, turned)
        turned.outputs[0].shape = copy.shape
        turned.outputs[0].type = kept.type
        node.replace_input_with(index, turned.outputs[0])
