"""The interface of weight formats: how a quantized weight is stored, gathered and multiplied."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum

import onnx_ir as ir

from edgetie.graph.nodes import Nodes
from edgetie.quantize.weights.affine import QuantSpec
from edgetie.quantize.weights.quantized_weight import QuantizedWeight

DEQUANTIZE_OPSET = 13
"""The first opset whose DequantizeLinear has an axis."""


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

    @property
    def can_dequantize(self) -> bool:
        """Whether a weight can be dequantized as a whole."""
        return True

    @abstractmethod
    def dequantize(self, nodes: Nodes, weight: QuantizedWeight) -> ir.Value:
        """Add a DequantizeLinear of the weight: float32 ``(out, in)``.

        Each call has separate initializers over the same bytes: ONNX Runtime changes what a
        DequantizeLinear reads, and fails if two read the same.
        """

    def supports_input(self, x: ir.Value) -> bool:
        """Whether a linear operator can read this activation."""
        return True

    def higher_precision(self) -> WeightFormat | None:
        """Return a format for weights that lose too much in this one, ``None`` if there is none."""
        return None
