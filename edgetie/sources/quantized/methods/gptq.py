"""Read weights of GPTQ, as AutoGPTQ and GPTQModel store them.

A linear layer has ``qweight``, int32 ``(K * bits / 32, N)``, with values of neighbouring inputs in
a word, ``qzeros``, int32 ``(groups, N * bits / 32)``, ``scales`` ``(groups, N)`` and ``g_idx``, the
group of each input. Zero points are stored less 1, unless the format is ``gptq_v2``.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgetie.sources.quantized.stored_tensors import StoredTensors, unpack_integers
from edgetie.sources.quantized.tensor import Array
from edgetie.sources.quantized.weights import GroupedWeight, StoredWeight

_WORD = 32
_FORMATS = ("gptq", "gptq_v2")


def read_gptq(
    tensors: StoredTensors, settings: Mapping[str, Any]
) -> dict[str, StoredWeight] | None:
    """Take all GPTQ layers; ``None`` if they have another format.

    Args:
        tensors: of the checkpoint.
        settings: its ``quantization_config``.
    """
    layout = settings.get("checkpoint_format") or settings.get("format") or _FORMATS[0]
    if layout not in _FORMATS or settings.get("is_marlin_format"):
        return None
    return {
        f"{module}.weight": _read_layer(tensors, module, settings, layout == _FORMATS[1])
        for module in tensors.modules("qweight")
    }


def _read_layer(
    tensors: StoredTensors, module: str, settings: Mapping[str, Any], is_second: bool
) -> GroupedWeight:
    packed, scales = (tensors.take_array(f"{module}.{name}") for name in ("qweight", "scales"))
    packed_zeros = tensors.take_array(f"{module}.qzeros")
    groups = tensors.take_optional(f"{module}.g_idx")
    bits = int(settings["bits"]) if groups is None else packed.shape[0] * _WORD // len(groups)
    values = unpack_integers(packed.T, bits)
    if groups is None:
        size = int(settings["group_size"])
        groups = np.arange(values.shape[1]) // (size if size > 0 else values.shape[1])
    return GroupedWeight(
        f"GPTQ int{bits}",
        bits,
        values[:, : len(groups)],
        np.ascontiguousarray(scales.T),
        np.ascontiguousarray(_zero_points(packed_zeros, bits, is_second)[:, : scales.shape[1]].T),
        groups,
    )


def _zero_points(packed: Array, bits: int, is_second: bool) -> Array:
    """Unpack zero points ``(groups, N)``.

    The first format has 1 less in each, subtracted from words as a whole: a 0 borrows from the next
    one. So 1 is added to words as a whole.
    """
    if is_second:
        return unpack_integers(packed, bits)
    if _WORD % bits:
        return (unpack_integers(packed, bits) + 1) & ((1 << bits) - 1)
    ones = np.uint32(sum(1 << start for start in range(0, _WORD, bits)))
    return unpack_integers((packed.view(np.uint32) + ones).view(np.int32), bits)
