"""GPTQ: both formats, orders of columns, formats that are not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_checkpoints import (
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


def write(
    directory: Path,
    *,
    bits: int = 4,
    group: int = 32,
    second: bool = False,
    order: Array | None = None,
    **settings: Any,
) -> dict[str, Integers]:
    """Write a model whose zero points are stored less 1, unless the format is the second."""
    weights: dict[str, Integers] = {}

    def layer(module: str, shape: tuple[int, int]) -> dict[str, Array]:
        weights[module] = each = random_integers(shape, bits, group, seed=len(weights))
        groups = np.arange(shape[1], dtype=np.int32) // group
        return {
            "qweight": pack_words(each.values, bits).T,
            "qzeros": pack_words(each.zero_points.T - (not second), bits),
            "scales": each.scales.T.astype(np.float16),
            "g_idx": groups if order is None else groups[order[: shape[1]]],
        }

    common = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": False}
    write_checkpoint(directory, common | settings, layer, kind="Qwen2")
    return weights


@pytest.mark.parametrize(
    ("bits", "group", "settings"),
    [
        (4, 32, {}),
        (4, 64, {"checkpoint_format": "gptq_v2"}),
        (8, 16, {}),
        (3, 64, {}),
        (2, 32, {"desc_act": True, "static_groups": True}),
    ],
)
def test_values_are_those_of_the_file(
    tmp_path: Path, bits: int, group: int, settings: dict[str, Any]
) -> None:
    second = settings.get("checkpoint_format") == "gptq_v2"
    weights = write(tmp_path / "model", bits=bits, group=group, second=second, **settings)
    check_kept(tmp_path / "model", weights)


def test_zero_points_of_0_borrow_from_the_next_one(tmp_path: Path) -> None:
    weights: dict[str, Integers] = {}

    def layer(module: str, shape: tuple[int, int]) -> dict[str, Array]:
        weights[module] = each = random_integers(shape, 4, 32, seed=len(weights))
        each.zero_points[::3] = 0
        ones = np.uint32(0x11111111)
        packed = pack_words(each.zero_points.T, 4).view(np.uint32) - ones
        return {
            "qweight": pack_words(each.values, 4).T,
            "qzeros": packed.view(np.int32),
            "scales": each.scales.T.astype(np.float16),
        }

    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    write_checkpoint(tmp_path / "model", settings, layer)
    check_kept(tmp_path / "model", weights)


def test_the_bundle_has_the_integers_of_the_file(tmp_path: Path) -> None:
    weights = write(tmp_path / "model")
    integers = {module: each.values for module, each in weights.items()}
    report = check_exported(tmp_path / "model", tmp_path / "bundle", integers)
    assert report.manifest.quantization["types"] == {"GPTQ int4": len(weights)}


def test_columns_in_the_order_of_activations_are_dequantized_only(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(64)
    order = np.concatenate([order, order + 64])
    weights = write(tmp_path / "model", order=order, desc_act=True)
    with pytest.raises(SourceError, match=r"_proj\.weight of type GPTQ int4 .*desc_act") as refused:
        load_source(str(tmp_path / "model"))
    assert refused.value.advice == {"dequantize": True}
    module = load_source(str(tmp_path / "model"), dequantize=True).module
    for name, each in weights.items():
        columns = each.values.shape[1]
        groups = (np.arange(columns) // 32)[order[:columns]]
        expected = (each.values - each.zero_points[:, groups].astype(np.float32)) * each.scales[
            :, groups
        ]
        assert np.array_equal(module.get_parameter(f"{name}.weight").detach().numpy(), expected)


def test_groups_of_few_columns_are_dequantized_only(tmp_path: Path) -> None:
    write(tmp_path / "model", group=8)
    with pytest.raises(SourceError, match="do not divide into blocks of 16"):
        load_source(str(tmp_path / "model"))
    assert not load_source(str(tmp_path / "model"), dequantize=True).quantized


def test_other_formats_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "model", checkpoint_format="marlin")
    with pytest.raises(SourceError, match=r"\(gptq\).*export the float model"):
        load_source(str(tmp_path / "model"))
