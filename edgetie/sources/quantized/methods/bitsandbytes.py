"""Read weights of bitsandbytes.

With 8 bits a linear layer has ``weight`` in int8 and ``SCB``, the largest magnitude of each output:
a value is ``weight * SCB / 127``, and the scale is this quotient rounded to float32. Which columns
of activations the library computes in 16 bits does not change weights. With 4 bits, ``weight`` has
indices of a table of 16 values.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgetie.sources.quantized.stored_tensors import StoredTensors
from edgetie.sources.quantized.tensor import Array
from edgetie.sources.quantized.weights import FloatWeight, GroupedWeight, StoredWeight, unsigned

_LARGEST = np.float32(127)
_STATE = "weight.quant_state.bitsandbytes__"


def read_bitsandbytes(
    tensors: StoredTensors, settings: Mapping[str, Any]
) -> dict[str, StoredWeight] | None:
    """Take all layers of bitsandbytes; ``None`` if they have a format that is not read.

    Args:
        tensors: of the checkpoint.
        settings: its ``quantization_config``.
    """
    del settings  # the files have all
    result: dict[str, StoredWeight] = {}
    for module in tensors.modules("SCB"):
        layout = tensors.take_optional(f"{module}.weight_format")
        if layout is not None and layout.any():  # rows of columns for an older kernel
            return None
        result[f"{module}.weight"] = _read_int8(tensors, module)
    for kind in ("nf4", "fp4"):
        for module in tensors.modules(f"{_STATE}{kind}"):
            result[f"{module}.weight"] = _read_table(tensors, module, kind)
    return result


def _read_int8(tensors: StoredTensors, module: str) -> GroupedWeight:
    values = unsigned(tensors.take_array(f"{module}.weight"))
    scales = tensors.take_array(f"{module}.SCB").reshape(-1, 1) / _LARGEST
    zero_points = np.full(scales.shape, 128, np.uint8)
    groups = np.zeros(values.shape[1], np.intp)
    return GroupedWeight("bitsandbytes int8", 8, values, scales, zero_points, groups)


def _read_table(tensors: StoredTensors, module: str, kind: str) -> FloatWeight:
    """Read indices of a table, the upper four bits of a byte first, in blocks of all values."""
    state = json.loads(tensors.take_array(f"{module}.{_STATE}{kind}").tobytes())
    packed, table, largest = (
        tensors.take_array(f"{module}.weight{suffix}") for suffix in ("", ".quant_map", ".absmax")
    )
    if "nested_blocksize" in state:
        outer_table, outer = (
            tensors.take_array(f"{module}.weight.nested_{name}") for name in ("quant_map", "absmax")
        )
        largest = _look_up(largest, outer_table, outer, state["nested_blocksize"])
        largest += np.float32(state["nested_offset"])
    packed = packed.view(np.uint8).reshape(-1)
    indices = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)
    count = int(np.prod(state["shape"]))
    values = _look_up(indices[:count], table, largest, state["blocksize"])
    return FloatWeight(f"bitsandbytes {kind}", values.reshape(state["shape"]))


def _look_up(indices: Array, table: Array, largest: Array, block: int) -> Array:
    """Look up ``(n,)`` values, times the largest magnitude of the block that each is in."""
    indices = indices.reshape(-1)
    return np.asarray(table[indices] * np.repeat(largest, block)[: len(indices)])
