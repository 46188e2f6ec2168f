"""The interface of weight formats: how a quantized weight is stored, gathered and multiplied."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum

import onnx_ir as ir

from edgetie.quantize.formats.node_builder import NodeBuilder
from edgetie.quantize.weights.affine import QuantSpec
from edgetie.quantize.weights.quantized_weight import QuantizedWeight


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

    @abstractmethod
    def spec(self, in_channels: int) -> QuantSpec:
        """Return how an output channel of this many input channels is quantized."""

    @abstractmethod
    def add_values(self, weight: QuantizedWeight) -> None:
        """Add the initializer with the quantized values."""

    @abstractmethod
    def gather(self, nodes: NodeBuilder, weight: QuantizedWeight, indices: ir.Value) -> ir.Value:
        """Add nodes for the dequantized rows ``(…, in)`` of ``indices``, whose rank is known."""

    @abstractmethod
    def matmul(
        self, nodes: NodeBuilder, weight: QuantizedWeight, x: ir.Value, *, exact: bool
    ) -> ir.Value:
        """Add nodes for ``x Wᵀ``.

        ``exact`` asks for activations that are hardly rounded, if the format can have them.
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
