"""Read quantized values back."""

from __future__ import annotations

import numpy as np

from edgetie.quantize.weights.affine import QuantizedValues, QuantSpec


def dequantized(quantized: QuantizedValues, spec: QuantSpec, columns: int) -> np.ndarray:
    width = spec.block or columns
    blocks = quantized.values.reshape(len(quantized.values), -1, width).astype(np.float32)
    zeros = (
        spec.midpoint
        if quantized.zero_points is None
        else quantized.zero_points[..., None].astype(np.float32)
    )
    values = (blocks - zeros) * quantized.scales[..., None]
    return values.reshape(len(values), -1)[:, :columns]
