"""Edit a graph: insert nodes, replace values, add initializers."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let every user of ``old`` read ``new``. Graph outputs keep their name."""
    if new.shape is None:
        new.shape = old.shape
    if new.type is None:
        new.type = old.type
    if old.is_graph_output():
        name, old.name = old.name, f"{old.name}.before"
        new.name = name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Let every user of ``old`` read ``new``, which is the same value computed in another way and
    takes its name.
    """
    name = old.name
    replace(old, new)
    old.name, new.name = f"{name}.before", name


def insert(before: ir.Node, *nodes: ir.Node) -> None:
    """Insert nodes before another one, in its graph. The graph names their unnamed values."""
    assert before.graph is not None
    before.graph.insert_before(before, nodes)


def detach(node: ir.Node) -> None:
    """Remove a node's inputs, so that values that nothing else reads have no uses."""
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)


def initializer(graph: ir.Graph, name: str, array: Any) -> ir.Value:
    """Register an array or a tensor as an initializer, or return the one that has this name."""
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


def replace_initializer(graph: ir.Graph, old: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a tensor as an initializer in place of another, whose name it takes.

    The uses of ``old`` stay, for the caller to replace.
    """
    name = str(old.name)
    graph.initializers.pop(name)
    old.name = f"{name}.before"
    return initializer(graph, name, tensor)


def transformed(
    tensor: ir.TensorProtocol,
    function: Callable[[Array], Array],
    shape: Sequence[int] | None = None,
    dtype: ir.DataType | None = None,
) -> ir.LazyTensor:
    """Return what a function computes from a tensor's array, each time it is read.

    Args:
        tensor: what to compute from.
        function: of its array.
        shape: of the result; by default the tensor's.
        dtype: of the result; by default the tensor's.
    """
    return ir.LazyTensor(
        lambda: ir.tensor(np.asarray(function(tensor.numpy()), order="C")),
        dtype or tensor.dtype,
        ir.Shape(tensor.shape.numpy() if shape is None else shape),
        name=tensor.name,
    )
