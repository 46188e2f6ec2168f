"""bitsandbytes: int8, also of layers that a model has transposed, and four bits of a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_checkpoints import (
    Array,
    Integers,
    check_exported,
    check_kept,
    random_integers,
    write_checkpoint,
)

from edgetie.errors import SourceError
from edgetie.sources.load import load_source

SETTINGS = {"quant_method": "bitsandbytes", "load_in_8bit": True}


def write(directory: Path, layout: int = 0, **options: Any) -> dict[str, Integers]:
    """Write layers ``(out, in)``; GPT-2 has them ``(in, out)``."""
    weights: dict[str, Integers] = {}
    is_transposed = options.get("kind") == "GPT2"

    def layer(module: str, shape: tuple[int, int]) -> dict[str, Array]:
        shape = shape[::-1] if is_transposed else shape
        each = random_integers(shape, 8, None, symmetric=True, seed=len(weights))
        weights[module] = each
        largest = each.scales * np.float32(127)
        assert np.array_equal(largest / np.float32(127), each.scales)
        return {
            "weight": (each.values.astype(np.int16) - 128).astype(np.int8),
            "SCB": largest[:, 0],
            "weight_format": np.array(layout, np.uint8),
        }

    write_checkpoint(directory, SETTINGS, layer, **options)
    return weights


def test_values_are_those_of_the_file(tmp_path: Path) -> None:
    check_kept(tmp_path / "model", write(tmp_path / "model"))


def test_the_bundle_of_transposed_layers_has_the_integers_of_the_file(tmp_path: Path) -> None:
    weights = write(
        tmp_path / "model", kind="GPT2", quantized=lambda name: name.split(".")[-1][:2] == "c_"
    )
    module = load_source(str(tmp_path / "model")).module
    for name, each in weights.items():
        floats = module.get_parameter(f"{name}.weight").detach().numpy()
        assert np.array_equal(floats.T, each.dequantize())
    integers = {name: each.values for name, each in weights.items()}
    report = check_exported(tmp_path / "model", tmp_path / "bundle", integers)
    assert report.manifest.quantization["types"] == {"bitsandbytes int8": len(weights)}


def test_layouts_of_older_kernels_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "model", layout=1)
    with pytest.raises(SourceError, match=r"\(bitsandbytes\).*export the float model"):
        load_source(str(tmp_path / "model"))


@pytest.mark.parametrize("is_nested", [False, True])
def test_four_bits_are_dequantized_only(tmp_path: Path, is_nested: bool) -> None:
    expected: dict[str, Array] = {}
    rng = np.random.default_rng(0)

    def layer(module: str, shape: tuple[int, int]) -> dict[str, Array]:
        table = np.sort(rng.uniform(-1, 1, 16)).astype(np.float32)
        indices = rng.integers(0, 16, np.prod(shape), np.uint8)
        largest = rng.uniform(0, 1, indices.size // 64).astype(np.float32)
        state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "shape": shape}
        tensors = {
            "weight": (indices[::2] << 4 | indices[1::2]).reshape(-1, 1),
            "weight.quant_map": table,
            "weight.absmax": largest,
        }
        if is_nested:
            outer_table = np.linspace(-1, 1, 256).astype(np.float32)
            outer = rng.integers(0, 256, largest.size, np.uint8)
            scales = rng.uniform(0, 1, -(-largest.size // 256)).astype(np.float32)
            largest = outer_table[outer] * np.repeat(scales, 256)[: outer.size] + np.float32(0.25)
            state |= {"nested_blocksize": 256, "nested_offset": 0.25}
            tensors |= {
                "weight.absmax": outer,
                "weight.nested_absmax": scales,
                "weight.nested_quant_map": outer_table,
            }
        expected[module] = (table[indices].reshape(-1, 64) * largest[:, None]).reshape(shape)
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        return tensors | {"weight.quant_state.bitsandbytes__nf4": text.copy()}

    write_checkpoint(tmp_path / "model", SETTINGS, layer)
    with pytest.raises(SourceError, match=r"_proj\.weight of type bitsandbytes nf4 .*evenly"):
        load_source(str(tmp_path / "model"))
    module = load_source(str(tmp_path / "model"), dequantize=True).module
    for name, values in expected.items():
        assert np.array_equal(module.get_parameter(f"{name}.weight").detach().numpy(), values)
