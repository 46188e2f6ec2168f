"""Read weights of AWQ, as AutoAWQ and GPTQModel store them for its format GEMM.

A linear layer has ``qweight``, int32 ``(K, N / 8)``, ``qzeros``, int32 ``(groups, N / 8)``, and
``scales`` ``(groups, N)``. A word has the values of eight outputs in the order of :data:`_ORDER`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgetie.sources.quantized.stored_tensors import StoredTensors, unpack_integers
from edgetie.sources.quantized.tensor import Array
from edgetie.sources.quantized.weights import GroupedWeight, StoredWeight, even_groups

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # outputs, from the lowest four bits of a word to the highest
_FORMATS = ("gemm", "exllama", "ipex")  # layers of one format for several kernels


def read_awq(tensors: StoredTensors, settings: Mapping[str, Any]) -> dict[str, StoredWeight] | None:
    """Take all AWQ layers; ``None`` if they have another format.

    Args:
        tensors: of the checkpoint.
        settings: its ``quantization_config``.
    """
    layout = settings.get("version") or settings.get("format") or _FORMATS[0]
    bits = settings.get("bits", settings.get("w_bit", 4))
    if str(layout).lower() not in _FORMATS or bits != 4:
        return None
    return {f"{name}.weight": _read_layer(tensors, name) for name in tensors.modules("qweight")}


def _read_layer(tensors: StoredTensors, module: str) -> GroupedWeight:
    values, zero_points = (
        np.ascontiguousarray(_unpack(tensors.take_array(f"{module}.{name}")).T)
        for name in ("qweight", "qzeros")
    )
    scales = np.ascontiguousarray(tensors.take_array(f"{module}.scales").T)
    groups = even_groups(values.shape[1], scales.shape[1])
    return GroupedWeight("AWQ int4", 4, values, scales, zero_points, groups)


def _unpack(words: Array) -> Array:
    """Unpack ``(rows, N / 8)`` to ``(rows, N)``."""
    stored = unpack_integers(words, 4).reshape(len(words), -1, len(_ORDER))
    values = np.empty_like(stored)
    values[..., _ORDER] = stored
    return values.reshape(len(words), -1)
