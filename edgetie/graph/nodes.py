"""Make nodes to insert into a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgetie.graph.editing import detach, initializer

_AXES_AS_INPUT = 13  # the first opset in which Unsqueeze, Squeeze, ReduceSum have an input for axes

Sizes = Sequence[int | ir.SymbolicDim] | None
"""The dimensions of a value, ``None`` if they are unknown."""


class Nodes(ir.tape.Tape):
    """Nodes to insert into a graph, whose main graph gets the initializers. A call adds one."""

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__()
        self.main_graph = graph

    def __call__(
        self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> ir.Value:
        return self.op(op_type, inputs, attributes, domain=domain)

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike) -> ir.Value:
        """Return an initializer, registered once by its name."""
        return initializer(self.main_graph, name, np.array(value, dtype))

    def tensor(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Return an initializer of a tensor, registered once by its name."""
        return initializer(self.main_graph, name, tensor)

    def integers(self, name: str, values: npt.ArrayLike) -> ir.Value:
        """Return an int64 initializer, for shapes and axes."""
        return self.constant(name, values, np.int64)

    def typed(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        sizes: Sizes = None,
        dtype: ir.DataType | None = ir.DataType.FLOAT,
        **attributes: Any,
    ) -> ir.Value:
        """Add a node whose output has these dimensions and this type."""
        output = self(op_type, *inputs, **attributes)
        output.shape = None if sizes is None else ir.Shape(sizes)
        output.type = None if dtype is None else ir.TensorType(dtype)
        return output

    def along(
        self, op_type: str, x: ir.Value, axis: int, *, sizes: Sizes = None, **attributes: Any
    ) -> ir.Value:
        """Add an Unsqueeze, a Squeeze or a ReduceSum of an axis, as the graph's opset has it."""
        inputs: list[ir.Value] = [x]
        if self.main_graph.opset_imports.get("", 1) < _AXES_AS_INPUT:
            attributes["axes"] = [axis]
        else:
            inputs.append(self.integers(f"axis.{axis}", [axis]))
        return self.typed(op_type, *inputs, sizes=sizes, dtype=x.dtype, **attributes)

    def transpose(self, x: ir.Value, axes: int = 2) -> ir.Value:
        """Swap the last two of an activation's or a weight's axes."""
        order, sizes = [*range(axes - 2), axes - 1, axes - 2], sizes_of(x)
        swapped = None if sizes is None else [sizes[axis] for axis in order]
        return self.typed("Transpose", x, sizes=swapped, dtype=x.dtype, perm=order)

    def number(self, value: float, dtype: ir.DataType) -> ir.Value:
        """Return a scalar initializer of a type."""
        return self.constant(f"number.{dtype.name}.{value}", value, dtype.numpy())

    def to_float(self, x: ir.Value) -> ir.Value:
        """Add a Cast to float32."""
        return self("Cast", x, to=ir.DataType.FLOAT)

    def local_copy(self, x: ir.Value) -> ir.Value:
        """Return ``x`` as a value that only these nodes read."""
        copy = self("Identity", x)
        copy.shape, copy.type = x.shape, x.type
        return copy

    def discard(self) -> None:
        """Detach the nodes, which are not inserted, from the values that they read."""
        for node in self.nodes:
            detach(node)

    def make_names_unique(self, prefix: str) -> None:
        """Name the values of a subgraph unlike those of all other graphs."""
        for index, node in enumerate(self.nodes):
            for output in node.outputs:
                output.name = f"{prefix}.{index}.{output.index()}"


def sizes_of(value: ir.Value) -> list[int | ir.SymbolicDim] | None:
    """Return the dimensions of a value."""
    return None if value.shape is None else list(value.shape)
