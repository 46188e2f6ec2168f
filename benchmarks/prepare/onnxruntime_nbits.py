"""onnxruntime's MatMulNBits quantizer with 8 bits, and otherwise as it comes.

Only the accuracy level is named: 4, int8 activations, is what edgetie and onnxruntime-genai's
builder write; without it, the operator computes in fp32.
"""

from __future__ import annotations

import sys
from pathlib import Path

from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

source, output = (Path(argument) / "model.onnx" for argument in sys.argv[1:])
quantizer = MatMulNBitsQuantizer(str(source), bits=8, accuracy_level=4)
quantizer.process()
quantizer.model.save_model_to_file(str(output), use_external_data_format=True)
