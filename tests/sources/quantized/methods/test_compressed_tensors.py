"""compressed-tensors: packed and plain integers, quantized tables, float8, what is refused."""

from __future__ import annotations

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
    pack_words,
    random_integers,
    write_checkpoint,
)

from edgetie.errors import SourceError
from edgetie.sources.load import load_source

SETTINGS = {"quant_method": "compressed-tensors", "quantization_status": "compressed"}


def is_linear_or_table(module: str) -> bool:
    return "_proj" in module or module == EMBEDDING


def write_packed(
    directory: Path, bits: int, group: int | None, *, symmetric: bool, **options: Any
) -> dict[str, Integers]:
    weights: dict[str, Integers] = {}

    def layer(module: str, shape: tuple[int, int]) -> dict[str, Array]:
        each = random_integers(shape, bits, group, symmetric=symmetric, seed=len(weights))
        weights[module] = each
        tensors = {
            "weight_packed": pack_words(each.values, bits),
            "weight_scale": each.scales.astype(np.float16),
            "weight_shape": np.array(shape),
        }
        if not symmetric:
            tensors["weight_zero_point"] = pack_words(each.zero_points.T, bits).T
        return tensors

    write_checkpoint(directory, SETTINGS | {"format": "pack-quantized"}, layer, **options)
    return weights


def write_plain(directory: Path, group: int | None, *, symmetric: bool) -> dict[str, Integers]:
    """Write signed int8; with scales of activations, which the weights do not depend on."""
    weights: dict[str, Integers] = {}

    def layer(module: str, shape: tuple[int, int]) -> dict[str, Array]:
        each = random_integers(shape, 8, group, symmetric=symmetric, seed=len(weights))
        weights[module] = each
        tensors = {
            "weight": (each.values.astype(np.int16) - 128).astype(np.int8),
            "weight_scale": each.scales.astype(np.float16),
            "input_scale": np.ones(1, np.float32),
        }
        if not symmetric:
            zero_points = each.zero_points.astype(np.int16) - 128
            tensors["weight_zero_point"] = zero_points.astype(np.int8)
        return tensors

    write_checkpoint(directory, SETTINGS | {"format": "int-quantized"}, layer)
    return weights


@pytest.mark.parametrize(
    ("bits", "group", "symmetric"),
    [(4, 32, True), (4, 32, False), (4, None, False), (8, None, True), (3, 64, False)],
)
def test_packed_values_are_those_of_the_file(
    tmp_path: Path, bits: int, group: int | None, symmetric: bool
) -> None:
    check_kept(
        tmp_path / "model", write_packed(tmp_path / "model", bits, group, symmetric=symmetric)
    )


@pytest.mark.parametrize(("group", "symmetric"), [(None, True), (None, False), (64, True)])
def test_plain_values_are_those_of_the_file(
    tmp_path: Path, group: int | None, symmetric: bool
) -> None:
    weights = write_plain(tmp_path / "model", group, symmetric=symmetric)
    check_kept(tmp_path / "model", weights)
    assert not load_source(str(tmp_path / "model")).unused


def test_a_scale_of_a_whole_tensor_is_that_of_all_rows(tmp_path: Path) -> None:
    def layer(module: str, shape: tuple[int, int]) -> dict[str, Array]:
        return {"weight": np.full(shape, -3, np.int8), "weight_scale": np.array([0.5], np.float16)}

    write_checkpoint(tmp_path / "model", SETTINGS | {"format": "int-quantized"}, layer)
    source = load_source(str(tmp_path / "model"))
    assert (source.module.model.layers[0].mlp.up_proj.weight == -1.5).all()
    assert source.quantized["model.layers.0.mlp.up_proj.weight"].scales.shape == (128, 1)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_table_stays_tied_to_the_head(tmp_path: Path, bits: int) -> None:
    weights = write_packed(
        tmp_path / "model", bits, 32, symmetric=False, quantized=is_linear_or_table
    )
    integers = {module: each.values for module, each in weights.items()}
    report = check_exported(tmp_path / "model", tmp_path / "bundle", integers)
    assert {use.op_type for use in report.manifest.ties[0].uses} == {
        "GatherBlockQuantized",
        "MatMulNBits",
    }


def test_the_bundle_has_the_plain_integers_of_the_file(tmp_path: Path) -> None:
    weights = write_plain(tmp_path / "model", None, symmetric=False)
    integers = {module: each.values for module, each in weights.items()}
    report = check_exported(tmp_path / "model", tmp_path / "bundle", integers)
    assert report.manifest.quantization["types"] == {"compressed-tensors int8": len(weights)}


@pytest.mark.parametrize("block", [None, (48, 48)])
def test_float8_is_dequantized_only(tmp_path: Path, block: tuple[int, int] | None) -> None:
    expected: dict[str, torch.Tensor] = {}

    def layer(module: str, shape: tuple[int, int]) -> dict[str, Any]:
        size = block or (1, shape[1])
        values = torch.randn(shape).to(torch.float8_e4m3fn)
        scales = torch.rand([-(-n // part) for n, part in zip(shape, size, strict=True)]).half()
        repeated = scales.float().repeat_interleave(size[0], 0).repeat_interleave(size[1], 1)
        expected[module] = values.float() * repeated[: shape[0], : shape[1]]
        return {"weight": values, "weight_scale": scales}

    weights = {"num_bits": 8, "type": "float", "block_structure": block}
    settings = {"format": "float-quantized", "config_groups": {"group_0": {"weights": weights}}}
    write_checkpoint(tmp_path / "model", SETTINGS | settings, layer)
    with pytest.raises(SourceError, match=r"_proj\.weight of type .*F8_E4M3 .*evenly") as refused:
        load_source(str(tmp_path / "model"))
    assert refused.value.advice == {"dequantize": True}
    module = load_source(str(tmp_path / "model"), dequantize=True).module
    for name, values in expected.items():
        assert torch.equal(module.get_parameter(f"{name}.weight"), values)


@pytest.mark.parametrize(
    "settings",
    [
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
        {"transform_config": {"config_groups": {"R4": {"type": "hadamard"}}}},
    ],
)
def test_sparse_and_rotated_weights_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    def layer(module: str, shape: tuple[int, int]) -> dict[str, Array]:
        return {"weight": np.zeros(shape, np.int8), "weight_scale": np.ones(1, np.float32)}

    write_checkpoint(tmp_path / "model", SETTINGS | settings, layer)
    with pytest.raises(SourceError, match=r"\(compressed-tensors\).*export the float model"):
        load_source(str(tmp_path / "model"))


def test_packed_floats_are_refused(tmp_path: Path) -> None:
    def layer(module: str, shape: tuple[int, int]) -> dict[str, Array]:
        packed = np.zeros((shape[0], shape[1] // 2), np.uint8)
        return {"weight_packed": packed, "weight_scale": np.ones((shape[0], 1), np.float32)}

    write_checkpoint(tmp_path / "model", SETTINGS | {"format": "nvfp4-pack-quantized"}, layer)
    with pytest.raises(SourceError, match=r"\(compressed-tensors\).*export the float model"):
        load_source(str(tmp_path / "model"))
