"""A graph that quantizes one weight at a time, chosen by an input when it runs.

The cost of quantizing each weight is measured on its own. With both versions of each linear
operator in the branches of an If, one session measures all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import initializer
from edgetie.quantize.formats.weight_format import Nodes, WeightFormat
from edgetie.quantize.weights.affine import QuantSpec
from edgetie.quantize.weights.quantized_weight import QuantizedWeight

TOGGLE_INPUT = "edgetie.quantized_weight"
"""The input: the index of the quantized weight, or -1, which is the default, for none."""


class ToggleFormat(WeightFormat):
    """Another format's linear operators, or those of the float weights.

    Args:
        quantized_format: the other format.
        names: of the weights, in the order of their indices.
        float_weights: the weights before they are quantized, by name.
    """

    def __init__(
        self,
        quantized_format: WeightFormat,
        names: Sequence[str],
        float_weights: Mapping[str, ir.TensorProtocol],
    ) -> None:
        self.quantized_format, self.names = quantized_format, names
        self.float_weights = float_weights
        self.opset = quantized_format.opset

    def spec(self, in_channels: int) -> QuantSpec:
        return self.quantized_format.spec(in_channels)

    def add_values(self, weight: QuantizedWeight) -> None:
        self.quantized_format.add_values(weight)

    def supports_input(self, x: ir.Value) -> bool:
        return self.quantized_format.supports_input(x)

    def gather(self, nodes: Nodes, weight: QuantizedWeight, indices: ir.Value) -> ir.Value:
        return self.quantized_format.gather(nodes, weight, indices)

    def matmul(self, nodes: Nodes, weight: QuantizedWeight, x: ir.Value, exact: bool) -> ir.Value:
        """Add an If whose condition is that this weight is to be quantized."""
        index = self.names.index(weight.name)
        quantized, unquantized = Nodes(weight.graph), Nodes(weight.graph)
        # a copy, because a format shares what it computes from an activation, here in a branch
        local = quantized.local_copy(x)
        stored = initializer(weight.graph, f"{weight.name}.float", self.float_weights[weight.name])
        right = stored if weight.transposed else unquantized("Transpose", stored, perm=[1, 0])
        outputs = {
            "then_branch": self.quantized_format.matmul(quantized, weight, local, exact),
            "else_branch": unquantized("MatMul", x, right),
        }
        branches = {}
        for key, builder in (("then_branch", quantized), ("else_branch", unquantized)):
            name = f"{weight.label}.{index}.{key}"
            builder.make_names_unique(name)
            branches[key] = ir.Graph([], [outputs[key]], nodes=builder.nodes, name=name)
        number = nodes.integers(f"{TOGGLE_INPUT}.{index}", index)
        condition = nodes("Equal", _toggle_input(weight.graph), number)
        return nodes.op("If", [condition], branches)


def _toggle_input(graph: ir.Graph) -> ir.Value:
    """Return the input, added once, with its default."""
    if TOGGLE_INPUT not in graph.initializers:
        graph.inputs.append(initializer(graph, TOGGLE_INPUT, np.array(-1, np.int64)))
    return graph.initializers[TOGGLE_INPUT]
