"""onnxruntime's `quantize_dynamic` as it comes: int8 weights, one scale for a matrix."""

from __future__ import annotations

import sys
from pathlib import Path

from onnxruntime.quantization import quantize_dynamic

source, output = (Path(argument) / "model.onnx" for argument in sys.argv[1:])
quantize_dynamic(source, output)
