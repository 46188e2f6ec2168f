"""torchao: its classes of weights in safetensors, offsets, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantized_checkpoints import (
    EMBEDDING,
    Array,
    Integers,
    check_exported,
    check_kept,
    random_integers,
    write_checkpoint,
)

from edgetie.errors import SourceError
from edgetie.sources.load import load_source

Fields = dict[str, Any]


def write(
    directory: Path,
    kind: str,
    make: Callable[[str, tuple[int, int]], Fields],
    data: Callable[[tuple[int, int]], dict[str, Any]] = lambda shape: {},
    **options: Any,
) -> None:
    """Write weights of a class; ``make`` returns the fields that are tensors."""
    headers: dict[str, str] = {}

    def layer(module: str, shape: tuple[int, int]) -> Fields:
        fields = make(module, shape)
        header = {"_type": kind, "_data": data(shape), "_tensor_data_names": [*fields]}
        headers[f"{module}.weight"] = json.dumps(header)
        headers["tensor_names"] = json.dumps([n for n in headers if n != "tensor_names"] + [NORM])
        return {f"_weight_{name}": array for name, array in fields.items()}

    headers[NORM] = json.dumps({"_type": "Tensor"})
    settings = {"quant_method": "torchao", "quant_type": {"default": {}}}
    write_checkpoint(directory, settings, layer, metadata=headers, **options)


NORM = "model.norm.weight"


def signed(values: Array, bits: int) -> Array:
    return (values.astype(np.int16) - (1 << bits >> 1)).astype(np.int8)


@pytest.mark.parametrize("symmetric", [True, False])
def test_int8_values_are_those_of_the_file(tmp_path: Path, symmetric: bool) -> None:
    weights: dict[str, Integers] = {}

    def make(module: str, shape: tuple[int, int]) -> Fields:
        each = random_integers(shape, 8, None, symmetric=symmetric, seed=len(weights))
        weights[module] = each
        fields = {"qdata": signed(each.values, 8), "scale": each.scales}
        return fields if symmetric else {"zero_point": signed(each.zero_points, 8)} | fields

    write(tmp_path / "model", "Int8Tensor", make)
    check_kept(tmp_path / "model", weights)


@pytest.mark.parametrize(("bits", "zeros"), [(4, np.int8), (4, np.float32), (8, np.int8)])
def test_unpacked_values_are_those_of_the_file(tmp_path: Path, bits: int, zeros: Any) -> None:
    weights: dict[str, Integers] = {}

    def make(module: str, shape: tuple[int, int]) -> Fields:
        weights[module] = each = random_integers(shape, bits, 32, seed=len(weights))
        return {
            "qdata": signed(each.values, bits),
            "scale": torch.from_numpy(each.scales).bfloat16(),
            "zero_point": signed(each.zero_points, bits).astype(zeros),
        }

    dtype = {"_type": "torch.dtype", "_data": f"int{bits}"}
    write(
        tmp_path / "model", "IntxUnpackedToInt8Tensor", make, lambda shape: {"target_dtype": dtype}
    )
    check_kept(tmp_path / "model", weights)


def test_zero_points_between_integers_are_dequantized_only(tmp_path: Path) -> None:
    def make(module: str, shape: tuple[int, int]) -> Fields:
        parts = np.ones((shape[0], shape[1] // 32), np.float32)
        return {"qdata": np.ones(shape, np.int8), "scale": parts, "zero_point": parts / 2}

    dtype = {"_type": "torch.dtype", "_data": "int4"}
    write(
        tmp_path / "model", "IntxUnpackedToInt8Tensor", make, lambda shape: {"target_dtype": dtype}
    )
    with pytest.raises(SourceError, match=r"type torchao IntxUnpacked\w+ of int4 .*evenly"):
        load_source(str(tmp_path / "model"))
    module = load_source(str(tmp_path / "model"), dequantize=True).module
    assert (module.model.layers[0].mlp.up_proj.weight == 0.5).all()


def pack_bytes(values: Array) -> Array:
    """Pack signed integers, the first of two in the lower half of a byte."""
    bits = values.view(np.uint8) & 15
    return (bits[:, ::2] | bits[:, 1::2] << 4).view(np.int8)


def pack_tiles(values: Array) -> Array:
    """Arrange unsigned integers as tensor cores read them, eight tiles of 16 columns together."""
    rows, columns = values.shape
    words = np.zeros((rows // 8, columns // 128, 32, 4), np.uint32)
    shifts = (0, 16, 4, 20, 8, 24, 12, 28)
    for row_tile, column_tile, lane, word in np.ndindex(words.shape):
        row = row_tile * 8 + lane // 4
        first = column_tile * 128 + word * 32 + lane % 4 * 2
        columns_of_word = [first + more for more in (0, 1, 8, 9, 16, 17, 24, 25)]
        words[row_tile, column_tile, lane, word] = sum(
            int(values[row, column]) << shift
            for column, shift in zip(columns_of_word, shifts, strict=True)
        )
    return words.view(np.int32)


@pytest.mark.parametrize("kind", ["Int4Tensor", "Int4TilePackedTo4dTensor"])
def test_offsets_are_kept_and_a_quantized_table_stays_tied(tmp_path: Path, kind: str) -> None:
    weights: dict[str, Integers] = {}
    offsets: dict[str, Array] = {}

    def make(module: str, shape: tuple[int, int]) -> Fields:
        each = random_integers(shape, 4, 32, symmetric=True, seed=len(weights))
        weights[module] = each
        offsets[module] = np.random.default_rng(len(weights)).normal(0, 0.02, each.scales.shape)
        offsets[module] = offsets[module].astype(np.float16).astype(np.float32)
        scales, zeros = (a.T.astype(np.float16) for a in (each.scales, offsets[module]))
        if kind == "Int4Tensor":
            qdata = pack_bytes(signed(each.values, 4))
            return {"qdata": qdata, "scale": scales, "zero_point": zeros}
        padding = -shape[1] % 128
        values = np.pad(each.values, [(0, 0), (0, padding)])
        both = np.pad(np.stack([scales, zeros], axis=-1), [(0, padding // 32), (0, 0), (0, 0)])
        return {"qdata": pack_tiles(values), "scale_and_zero": both}

    write(
        tmp_path / "model",
        kind,
        make,
        lambda shape: {"block_size": [1, 32], "shape": [*shape]},
        quantized=lambda module: "_proj" in module or module == EMBEDDING,
    )
    source = load_source(str(tmp_path / "model"))
    for module, each in weights.items():
        kept = source.quantized[f"{module}.weight"]
        assert np.array_equal(kept.values, each.values)
        assert np.array_equal(kept.offsets, offsets[module])
        expected = each.dequantize() + np.repeat(offsets[module], 32, axis=1)
        floats = source.module.get_parameter(f"{module}.weight").detach().numpy()
        assert np.array_equal(floats, expected)
    integers = {module: each.values for module, each in weights.items()}
    check_exported(tmp_path / "model", tmp_path / "bundle", integers)


@pytest.mark.parametrize(("kind", "more"), [("NVFP4Tensor", {}), ("Int8Tensor", "act_pre_scale")])
def test_other_classes_and_scaled_activations_are_refused(
    tmp_path: Path, kind: str, more: str
) -> None:
    def make(module: str, shape: tuple[int, int]) -> Fields:
        fields = {"qdata": np.ones(shape, np.int8), "scale": np.ones((shape[0], 1), np.float32)}
        return fields | ({more: np.ones(shape[1], np.float32)} if more else {})

    write(tmp_path / "model", kind, make)
    with pytest.raises(SourceError, match=r"\(torchao\).*export the float model"):
        load_source(str(tmp_path / "model"))


def test_tiles_of_other_processors_are_refused(tmp_path: Path) -> None:
    def make(module: str, shape: tuple[int, int]) -> Fields:
        return {
            "qdata": np.zeros((shape[0] // 16, 1, 64, 4), np.int32),
            "scale_and_zero": np.ones((shape[1] // 32, shape[0], 2), np.float32),
        }

    write(
        tmp_path / "model",
        "Int4TilePackedTo4dTensor",
        make,
        lambda shape: {"block_size": [1, 32], "shape": [*shape]},
    )
    with pytest.raises(SourceError, match=r"\(torchao\).*export the float model"):
        load_source(str(tmp_path / "model"))
