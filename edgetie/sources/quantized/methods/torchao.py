"""Read weights of torchao, as transformers writes them to safetensors.

The header of a file names the class of each weight, such as ``Int8Tensor``, and its fields are
tensors: ``layer.weight`` has ``layer._weight_qdata`` and others. How activations are quantized when
the library runs a model does not change its weights.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgetie.sources.quantized.stored_tensors import StoredTensors, unpack_integers
from edgetie.sources.quantized.tensor import Array
from edgetie.sources.quantized.weights import (
    FloatWeight,
    GroupedWeight,
    StoredWeight,
    even_groups,
    repeat_rows,
    unsigned,
)

_NAMES, _PLAIN = "tensor_names", "Tensor"
_TILE_ROWS, _LANES = 8, 32


def read_torchao(
    tensors: StoredTensors, settings: Mapping[str, Any]
) -> dict[str, StoredWeight] | None:
    """Take all tensors of torchao's classes; ``None`` if one has a class that is not read.

    Args:
        tensors: of the checkpoint.
        settings: its ``quantization_config``.
    """
    del settings  # the files have all
    result: dict[str, StoredWeight] = {}
    for name in json.loads(tensors.metadata.get(_NAMES, "[]")):
        header = tensors.read_json(name)
        kind = str(header["_type"])
        if kind == _PLAIN:
            continue
        fields = header["_tensor_data_names"]
        if kind not in _CLASSES or "act_pre_scale" in fields:
            return None
        module, _, parameter = name.rpartition(".")
        arrays = {field: tensors.take_array(f"{module}._{parameter}_{field}") for field in fields}
        weight = _CLASSES[kind](f"torchao {kind}", arrays, header["_data"])
        if weight is None:
            return None
        result[name] = weight
    return result


def _read_int8(kind: str, arrays: Mapping[str, Array], data: Mapping[str, Any]) -> StoredWeight:
    """Read int8 values ``(N, K)`` with scales, and perhaps zero points, of blocks."""
    del data
    values = arrays["qdata"]
    scales = repeat_rows(arrays["scale"], len(values))
    zeros = arrays.get("zero_point", np.zeros((1, 1), np.int8))
    zero_points = np.broadcast_to(repeat_rows(zeros, len(values)), scales.shape)
    groups = even_groups(values.shape[1], scales.shape[1])
    return GroupedWeight(kind, 8, unsigned(values), scales, unsigned(zero_points), groups)


def _read_unpacked(
    kind: str, arrays: Mapping[str, Array], data: Mapping[str, Any]
) -> StoredWeight | None:
    """Read integers of few bits, each in an int8."""
    bits = int(data["target_dtype"]["_data"].removeprefix("int"))
    values, zeros = arrays["qdata"], arrays["zero_point"]
    scales = repeat_rows(arrays["scale"], len(values))
    zero_points = repeat_rows(zeros, len(values))
    groups = even_groups(values.shape[1], scales.shape[1])
    kind = f"{kind} of int{bits}"
    if (zero_points != np.rint(zero_points)).any():
        weight = (values - zero_points[:, groups]) * scales[:, groups]
        return FloatWeight(kind, weight.astype(np.float32))
    return GroupedWeight(
        kind, bits, unsigned(values, bits), scales, unsigned(zero_points, bits), groups
    )


def _read_int4(kind: str, arrays: Mapping[str, Array], data: Mapping[str, Any]) -> StoredWeight:
    """Read signed integers, two in a byte, with scales and offsets ``(groups, N)``."""
    del data
    packed = arrays["qdata"].view(np.uint8)
    values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    return _with_offsets(kind, values ^ 8, arrays["scale"].T, arrays["zero_point"].T)


def _read_tiles(
    kind: str, arrays: Mapping[str, Array], data: Mapping[str, Any]
) -> StoredWeight | None:
    """Read tiles of tensor cores, with scales and offsets ``(groups, N, 2)``.

    A word has eight values of one output, of two tiles of 16 inputs. Lane ``t`` of 32 has output
    ``t // 4``, and in each half of a tile the inputs ``2 * (t % 4)`` and the next one.
    """
    words = arrays["qdata"]  # (N / 8, K / columns of a tile, 32, words)
    row_tiles, column_tiles, lanes, count = words.shape
    if lanes != _LANES:  # AMD's tensor cores read other tiles
        return None
    stored = unpack_integers(words.reshape(-1, count), 4)
    # from the lowest bits up: the first input of each half of both tiles, then the second ones
    shape = row_tiles, column_tiles, lanes // 4, 4, count, 2, 2, 2
    second, tile, half = 5, 6, 7
    order = (0, 2, 1, 4, tile, half, 3, second)
    values = stored.reshape(shape).transpose(order).reshape(row_tiles * _TILE_ROWS, -1)
    rows, columns = data["shape"]
    scales, offsets = (arrays["scale_and_zero"][..., part].T for part in (0, 1))
    used = -(-columns // int(data["block_size"][-1]))
    return _with_offsets(kind, values[:rows, :columns], scales[:rows, :used], offsets[:rows, :used])


def _with_offsets(kind: str, values: Array, scales: Array, offsets: Array) -> GroupedWeight:
    """Make a weight of four bits: ``(value - 8) * scale + offset``."""
    return GroupedWeight(
        kind,
        4,
        np.ascontiguousarray(values),
        np.ascontiguousarray(scales),
        np.full(scales.shape, 8, np.uint8),
        even_groups(values.shape[1], scales.shape[1]),
        np.ascontiguousarray(offsets),
    )


_CLASSES: dict[
    str, Callable[[str, Mapping[str, Array], Mapping[str, Any]], StoredWeight | None]
] = {
    "Int8Tensor": _read_int8,
    "IntxUnpackedToInt8Tensor": _read_unpacked,
    "Int4Tensor": _read_int4,
    "Int4TilePackedTo4dTensor": _read_tiles,
}
