"""The base of all passes, and the few helpers they share for reading and editing a graph."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.operators import operator
from edgetie.ties import TieGroup, verify_ties

MICROSOFT = "com.microsoft"


class GraphPass(ir.passes.InPlacePass):
    """A pass that edits the graph in place and keeps every tied weight one.

    Attributes:
        name: what reports and errors call it.
        ties: the groups verified after the pass.
        changed: how many places it rewrote.
        skipped: places that looked right and did not match, and why.
    """

    name = ""

    def __init__(self) -> None:
        self.ties: Sequence[TieGroup] = ()
        self.changed = 0
        self.skipped: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.rewrite(model)
        if self.changed:
            prune(model)
            name_apart(model)
            if any(node.domain == MICROSOFT for node in model.graph):
                model.graph.opset_imports.setdefault(MICROSOFT, 1)
        return ir.passes.PassResult(model, modified=bool(self.changed))

    def rewrite(self, model: ir.Model) -> None:
        """Edit ``model``; count in ``changed``, explain in ``skipped``."""
        raise NotImplementedError

    def ensures(self, model: ir.Model) -> None:
        verify_ties(model, self.ties, where=f"pass {self.name}")


def prune(model: ir.Model) -> None:
    """Remove nodes and initializers that nothing uses."""
    import onnx_ir.passes.common as common

    common.RemoveUnusedNodesPass()(model)


def name_apart(model: ir.Model) -> None:
    """Give values of all graphs different names: new ones may be called as some of a subgraph."""
    taken: set[str] = set()
    fresh = itertools.count()
    for graph in model.graphs():  # the outermost one first, whose outputs are called from outside
        taken |= {str(value.name) for value in (*graph.inputs, *graph.initializers.values())}
        for node in graph:
            for value in node.outputs:
                while value.name and value.name in taken:
                    value.name = f"{value.name}.{next(fresh)}"
                taken.add(str(value.name))


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes ``value``, if it is one of ``op_types``."""
    if value is None:
        return None
    node = value.producer()
    return node if node is not None and operator(node) in op_types else None


def only_user(value: ir.Value, *op_types: str) -> ir.Node | None:
    """The one node that uses ``value``, if there is one and it is one of ``op_types``."""
    if value.is_graph_output() or len(value.uses()) != 1:
        return None
    node = next(iter(value.uses()))[0]
    return node if not op_types or operator(node) in op_types else None


def constant(value: ir.Value | None, limit: int = 1 << 16) -> np.ndarray[Any, Any] | None:
    """The array behind a small constant, or ``None``."""
    if value is None or value.const_value is None or value.const_value.size > limit:
        return None
    return value.const_value.numpy()


def scalar(value: ir.Value | None) -> float | int | None:
    """The number behind a constant of one element, or ``None``."""
    array = constant(value, limit=1)
    return None if array is None or array.size != 1 else array.reshape(()).item()


def weight(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer, of any size, or ``None``."""
    return None if value is None or not value.is_initializer() else value.const_value


def attribute_ints(node: ir.Node, name: str) -> list[int] | None:
    """An attribute's integers, or ``None`` where it is absent."""
    attribute = node.attributes.get(name)
    return None if attribute is None else [int(i) for i in attribute.as_ints()]


def last_dimension(value: ir.Value) -> int | None:
    """The size of the last axis, if it is known."""
    if value.shape is None or len(value.shape) == 0:
        return None
    size = value.shape[-1]
    return size if isinstance(size, int) else None


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether both shapes are known and equal, symbolic dimensions by name."""
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(
        x == y if isinstance(x, int) or isinstance(y, int) else x.value == y.value
        and x.value is not None
        for x, y in zip(a.shape, b.shape, strict=True)
    )  # fmt: skip


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let every user of ``old`` take ``new``; graph outputs keep their name."""
    if new.shape is None:
        new.shape = old.shape
    if new.type is None:
        new.type = old.type
    if old.is_graph_output():
        name, old.name = old.name, f"{old.name}.before"
        new.name = name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def insert(before: ir.Node, *nodes: ir.Node) -> None:
    """Put nodes in front of another, in its graph; unnamed values get names there."""
    assert before.graph is not None
    before.graph.insert_before(before, nodes)


def initializer(graph: ir.Graph, name: str, array: Any) -> ir.Value:
    """Register an array or a tensor as an initializer; one of that name is taken as it is."""
    existing = graph.initializers.get(name)
    if existing is not None:
        return existing
    tensor = array if isinstance(array, ir.TensorProtocol) else ir.tensor(np.asarray(array))
    value = ir.Value(
        name=name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value
