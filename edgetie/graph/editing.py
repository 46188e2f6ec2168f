"""Edit a graph: insert nodes, replace values, add initializers, remove what is unused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir


def prune(model: ir.Model) -> None:
    """Remove nodes and initializers that nothing uses."""
    import onnx_ir.passes.common as common

    common.RemoveUnusedNodesPass()(model)


def make_names_unique(model: ir.Model) -> None:
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
