"""Read weights in float8 with a scale for each block of rows and columns.

A linear layer has ``weight`` in float8 and ``weight_scale_inv``, which in spite of its name values
are multiplied by.
"""

from collections.abc import Mapping
from typing import Any

from edgetie.sources.quantized.stored_tensors import StoredTensors
from edgetie.sources.quantized.weights import FloatWeight, StoredWeight, scale_blocks


def read_fp8(tensors: StoredTensors, settings: Mapping[str, Any]) -> dict[str, StoredWeight] | None:
    """Take all layers with such scales; ``None`` if there are others.

    Args:
        tensors: of the checkpoint.
        settings: its ``quantization_config``.
    """
    block = settings.get("weight_block_size")
    if not block:
        return None
    result: dict[str, StoredWeight] = {}
    for module in tensors.modules("weight_scale_inv"):
        kind = f"fp8 {tensors.dtype(f'{module}.weight')}"
        values = tensors.take_array(f"{module}.weight")
        if values.ndim != len(block):
            return None
        scales = tensors.take_array(f"{module}.weight_scale_inv")
        result[f"{module}.weight"] = FloatWeight(kind, scale_blocks(values, scales, block))
    tensors.drop(".activation_scale")
    return result
