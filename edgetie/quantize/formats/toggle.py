"""A graph in which each product is rounded or not, as an input says when it runs.

What rounding one weight costs is measured for every weight; with both forms of each product in the
branches of an If, one session serves all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import initializer
from edgetie.quantize.formats.weight_format import NodeBuilder, QuantizedWeight, WeightFormat
from edgetie.quantize.weights.affine import QuantSpec

TOGGLE_INPUT = "edgetie.rounded"
"""Which product is rounded, by its index in the names; -1, which is the default, for none."""


class ToggleFormat(WeightFormat):
    """Products of another form, or of floats.

    Args:
        form: of what is rounded.
        names: of the weights.
        floats: the weights before they were rounded, by their names.
    """

    def __init__(
        self, form: WeightFormat, names: Sequence[str], floats: Mapping[str, ir.TensorProtocol]
    ) -> None:
        super().__init__()
        self.form, self.names, self.floats = form, names, floats
        self.activations, self.supports_rotation, self.opset = (
            form.activations,
            form.supports_rotation,
            form.opset,
        )
        self.aliases = form.aliases

    def spec(self, columns: int) -> QuantSpec:
        return self.form.spec(columns)

    def store(self, matrix: QuantizedWeight) -> None:
        self.form.store(matrix)

    def takes(self, x: ir.Value) -> bool:
        return self.form.takes(x)

    def lookup(self, matrix: QuantizedWeight, ids: ir.Value, rank: int) -> Sequence[ir.Node]:
        return self.form.lookup(matrix, ids, rank)

    def product(
        self, matrix: QuantizedWeight, x: ir.Value, bias: ir.Value | None, *, exact: bool
    ) -> list[ir.Node]:
        """``If`` this weight is to be rounded."""
        graph, index = matrix.graph, self.names.index(matrix.name)
        exactly = NodeBuilder(graph)
        weight = initializer(graph, f"{matrix.name}.float", self.floats[matrix.name])
        right = weight if matrix.turned else exactly("Transpose", weight, perm=[1, 0])
        result = exactly("MatMul", x, right)
        if bias is not None:
            exactly("Add", result, bias)
        rounded = NodeBuilder(
            graph
        )  # what a form keeps of ``x`` for other products is in this branch
        rounded += self.form.product(matrix, rounded.again(x), bias, exact=exact)
        number = initializer(graph, f"{TOGGLE_INPUT}.{index}", np.array(index, np.int64))
        chosen = ir.node("Equal", [_which(graph), number])
        branches = {
            key: ir.AttrGraph(key, _branch(nodes, f"{matrix.label}.{index}.{key}"))
            for key, nodes in (("then_branch", rounded), ("else_branch", exactly))
        }
        return [chosen, ir.Node("", "If", chosen.outputs, branches.values(), num_outputs=1)]


def _which(graph: ir.Graph) -> ir.Value:
    """The input; it has a default."""
    existing = graph.initializers.get(TOGGLE_INPUT)
    if existing is not None:
        return existing
    value = initializer(graph, TOGGLE_INPUT, np.array(-1, np.int64))
    graph.inputs.append(value)
    return value


def _branch(nodes: NodeBuilder, name: str) -> ir.Graph:
    nodes.make_names_unique(name)
    return ir.Graph([], [nodes[-1].outputs[0]], nodes=nodes, name=name)
