"""A graph in which an input chooses the one quantized weight, by an If around each MatMul."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from edgetie.graph.editing import initializer
from edgetie.graph.nodes import Nodes
from edgetie.quantize.formats.weight_format import WeightFormat
from edgetie.quantize.weights.affine import QuantSpec
from edgetie.quantize.weights.quantized_weight import QuantizedWeight

TOGGLE_INPUT = "edgetie.quantized_weight"
"""The input: the index of the quantized weight, or -1, which is the default, for none."""


class ToggleFormat(WeightFormat):
    """Another format's linear operators, or those of the float weights, by the index of a name."""

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

    def higher_precision(self) -> WeightFormat | None:
        higher = self.quantized_format.higher_precision()
        return ToggleFormat(higher, self.names, self.float_weights) if higher else None

    def gather(self, nodes: Nodes, weight: QuantizedWeight, indices: ir.Value) -> ir.Value:
        return self.quantized_format.gather(nodes, weight, indices)

    @property
    def can_dequantize(self) -> bool:
        return self.quantized_format.can_dequantize

    def dequantize(self, nodes: Nodes, weight: QuantizedWeight) -> ir.Value:
        return self.quantized_format.dequantize(nodes, weight)

    def matmul(self, nodes: Nodes, weight: QuantizedWeight, x: ir.Value, exact: bool) -> ir.Value:
        """Add an If whose condition is that this weight is to be quantized."""
        index = self.names.index(weight.name)
        quantized, unquantized = Nodes(weight.graph), Nodes(weight.graph)
        # a copy, because a format shares what it computes from an activation, here in a branch
        local = quantized("Identity", x)
        stored = initializer(weight.graph, f"{weight.name}.float", self.float_weights[weight.name])
        right = stored if weight.transposed else unquantized("Transpose", stored, perm=[1, 0])
        result = self.quantized_format.matmul(quantized, weight, local, exact)
        outputs = result, unquantized("MatMul", x, right)
        branches = {}
        keys = "then_branch", "else_branch"
        for key, builder, output in zip(keys, (quantized, unquantized), outputs, strict=True):
            name = f"{weight.label}.{index}.{key}"
            builder.make_names_unique(name)
            branches[key] = ir.Graph([], [output], nodes=builder.nodes, name=name)
        number = nodes.integers(f"{TOGGLE_INPUT}.{index}", index)
        toggle = nodes.integers(TOGGLE_INPUT, -1)
        if not toggle.is_graph_input():
            weight.graph.inputs.append(toggle)
        return nodes.op("If", [nodes("Equal", toggle, number)], branches)
