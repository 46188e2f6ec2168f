"""The interface of weight formats: how a quantized weight is stored, gathered and multiplied."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgetie.graph.editing import initializer
from edgetie.quantize.weights.affine import QuantSpec
from edgetie.quantize.weights.quantized_weight import QuantizedWeight


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

    def integers(self, name: str, values: npt.ArrayLike) -> ir.Value:
        """Return an int64 initializer, for shapes and axes."""
        return self.constant(name, values, np.int64)

    def to_float(self, x: ir.Value) -> ir.Value:
        """Add a Cast to float32."""
        return self("Cast", x, to=ir.DataType.FLOAT)

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


class ScaleGranularity(Enum):
    """The part of quantized activations that shares a scale."""

    BLOCK = "block"
    TOKEN = "token"
    TENSOR = "tensor"
    NONE = "not rounded"


class WeightFormat(ABC):
    """How a quantized weight is stored, gathered and multiplied."""

    activations = ScaleGranularity.BLOCK
    """How a linear operator quantizes the activations it reads."""

    supports_rotation = True
    """Whether linear operators may read activations that are rotated when the model runs."""

    supports_subgraphs = True
    """Whether ONNX Runtime runs linear operators in subgraphs with weights of the main graph."""

    opset = 1
    """The oldest opset with all its operators."""

    def spec(self, in_channels: int) -> QuantSpec:
        """Return how weights are quantized: by default in 8 bits by output channel."""
        return QuantSpec()

    @abstractmethod
    def add_values(self, weight: QuantizedWeight) -> None:
        """Add the initializer with the quantized values."""

    def gather(self, nodes: Nodes, weight: QuantizedWeight, indices: ir.Value) -> ir.Value:
        """Add nodes for the dequantized rows ``(…, in)`` of ``indices``, whose rank is known."""
        raise NotImplementedError

    @abstractmethod
    def matmul(self, nodes: Nodes, weight: QuantizedWeight, x: ir.Value, exact: bool) -> ir.Value:
        """Add nodes for ``x Wᵀ``, with ``exact`` with activations that are hardly rounded, if the
        format can have them.
        """

    def supports_input(self, x: ir.Value) -> bool:
        """Whether a linear operator can read this activation."""
        return True

    def higher_precision(self) -> WeightFormat | None:
        """Return a format for weights that lose too much in this one, ``None`` if there is none."""
        return None


def rank(value: ir.Value) -> int:
    """Return the number of axes, 0 if it is unknown."""
    return len(value.shape) if value.shape is not None else 0
