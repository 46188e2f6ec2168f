"""int8 from a bundle or an ``.onnx`` file, the tied table first; needs no torch."""

from __future__ import annotations

from edgetie.quantize.quantizer import QuantizeReport, quantize

__all__ = ["QuantizeReport", "quantize"]
