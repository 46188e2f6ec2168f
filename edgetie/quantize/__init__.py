"""int8 from a bundle or an ``.onnx`` file, the tied table first; needs no torch."""

from __future__ import annotations

from edgetie.quantize.quantizer import QuantizeReport, quantize
from edgetie.quantize.sensitivity import Cost

__all__ = ["Cost", "QuantizeReport", "quantize"]
