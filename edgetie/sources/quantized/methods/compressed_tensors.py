"""Read weights of the formats of compressed-tensors, which LLM Compressor writes.

``pack-quantized`` has ``weight_packed``, int32 words of neighbouring inputs, and ``weight_shape``.
``int-quantized`` and ``float-quantized`` have ``weight`` in int8 or float8. All have
``weight_scale``: for a tensor, for outputs, for groups of inputs or for blocks of both. How
activations are quantized when the library runs a model does not change its weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgetie.sources.quantized.stored_tensors import StoredTensors, unpack_integers
from edgetie.sources.quantized.weights import (
    FloatWeight,
    GroupedWeight,
    StoredWeight,
    even_groups,
    repeat_rows,
    scale_blocks,
    unsigned,
)

_WORD = 32
_OF_ACTIVATIONS = (
    ".input_scale", ".input_zero_point", ".output_scale", ".output_zero_point", ".k_scale",
    ".k_zero_point", ".v_scale", ".v_zero_point", ".q_scale", ".q_zero_point",
)  # fmt: skip


def read_compressed_tensors(
    tensors: StoredTensors, settings: Mapping[str, Any]
) -> dict[str, StoredWeight] | None:
    """Take all layers with scales; ``None`` if some have a format that is not read.

    Args:
        tensors: of the checkpoint.
        settings: its ``quantization_config``.
    """
    sparsity = (settings.get("sparsity_config") or {}).get("format", "dense")
    if sparsity != "dense" or (settings.get("transform_config") or {}).get("config_groups"):
        return None
    groups = [group.get("weights") or {} for group in settings.get("config_groups", {}).values()]
    blocks = next((each["block_structure"] for each in groups if each.get("block_structure")), None)
    result: dict[str, StoredWeight] = {}
    for module in tensors.modules("weight_scale"):
        weight = _read_layer(tensors, module, blocks)
        if weight is None:
            return None
        result[f"{module}.weight"] = weight
    tensors.drop(*_OF_ACTIVATIONS)
    return result


def _read_layer(
    tensors: StoredTensors, module: str, blocks: Sequence[int] | None
) -> StoredWeight | None:
    """Read a layer; ``blocks`` has rows and columns of a block if float8 has scales of blocks."""
    dtype = tensors.dtype(f"{module}.weight")
    if tensors.dtype(f"{module}.weight_packed") == "I32":
        return _read_packed(tensors, module)
    if dtype is None or not dtype.startswith(("I8", "F8")):
        return None
    values = tensors.take_array(f"{module}.weight")
    rows, columns = values.shape
    scales = tensors.take_array(f"{module}.weight_scale")
    if dtype != "I8" and blocks and scales.ndim == 2:  # otherwise one for each row or for all
        weight = scale_blocks(values, scales, blocks)
        return FloatWeight(f"compressed-tensors {dtype}", weight)
    scales = repeat_rows(scales, rows)
    zero_points = tensors.take_optional(f"{module}.weight_zero_point")
    groups = even_groups(columns, scales.shape[1])
    if dtype != "I8":
        return FloatWeight(f"compressed-tensors {dtype}", values * scales[:, groups])
    signed = (
        np.zeros_like(scales, np.int8) if zero_points is None else repeat_rows(zero_points, rows)
    )
    return GroupedWeight(
        "compressed-tensors int8", 8, unsigned(values), scales, unsigned(signed), groups
    )


def _read_packed(tensors: StoredTensors, module: str) -> GroupedWeight:
    packed = tensors.take_array(f"{module}.weight_packed")
    rows, columns = tensors.take_array(f"{module}.weight_shape").tolist()
    bits = packed.shape[1] * _WORD // columns
    scales = repeat_rows(tensors.take_array(f"{module}.weight_scale"), rows)
    groups = tensors.take_optional(f"{module}.weight_g_idx")
    zero_points = tensors.take_optional(f"{module}.weight_zero_point")
    if zero_points is None:
        zero_points = np.full(scales.shape, 1 << bits >> 1, np.uint8)
    else:  # words of neighbouring outputs
        zero_points = unpack_integers(zero_points.T, bits)[:, :rows].T
    return GroupedWeight(
        f"compressed-tensors int{bits}",
        bits,
        unpack_integers(packed, bits)[:, :columns],
        scales,
        np.ascontiguousarray(zero_points),
        even_groups(columns, scales.shape[1]) if groups is None else groups,
    )
