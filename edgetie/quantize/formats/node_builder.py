"""A list of nodes to insert into a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgetie.graph.editing import initializer


class NodeBuilder(ir.tape.Tape):
    """Records nodes one after the other; a call adds one and returns its output.

    Args:
        graph: the main graph, which gets the initializers.
    """

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__()
        self.main_graph = graph

    def __call__(
        self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> ir.Value:
        return self.op(op_type, inputs, attributes, domain=domain)

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike) -> ir.Value:
        """Return an initializer of the main graph, registered once by its name."""
        return initializer(self.main_graph, name, np.array(value, dtype))

    def local_copy(self, x: ir.Value) -> ir.Value:
        """Return ``x`` as a value that only these nodes read."""
        copy = self("Identity", x)
        copy.shape, copy.type = x.shape, x.type
        return copy

    def make_names_unique(self, prefix: str) -> None:
        """Name the values of a subgraph unlike those of all other graphs."""
        for index, node in enumerate(self.nodes):
            for output in node.outputs:
                output.name = f"{prefix}.{index}.{output.index()}"
