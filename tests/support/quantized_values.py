"""Read quantized values back."""

from __future__ import annotations

import numpy as np

from edgetie.quantize.weights.affine import QuantizedValues, QuantSpec


def dequantized(rounded: QuantizedValues, spec: QuantSpec, columns: int) -> np.ndarray:
    width = spec.block or columns
    blocks = rounded.codes.reshape(len(rounded.codes), -1, width).astype(np.float32)
    zeros = spec.middle if rounded.zeros is None else rounded.zeros[..., None].astype(np.float32)
    values = (blocks - zeros) * rounded.scales[..., None]
    return values.reshape(len(values), -1)[:, :columns]
