"""AWQ: the order of outputs in a word, formats that are not read."""

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

ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
SETTINGS = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}


def write(directory: Path, **settings: Any) -> dict[str, Integers]:
    weights: dict[str, Integers] = {}

    def pack(values: Array) -> Array:
        words = values.reshape(len(values), -1, 8)[..., ORDER]
        return pack_words(words.reshape(len(values), -1), 4)

    def layer(module: str, shape: tuple[int, int]) -> dict[str, Array]:
        weights[module] = each = random_integers(shape, 4, 32, seed=len(weights))
        return {
            "qweight": pack(each.values.T),
            "qzeros": pack(each.zero_points.T),
            "scales": each.scales.T.astype(np.float16),
        }

    write_checkpoint(directory, SETTINGS | settings, layer, kind="Qwen2")
    return weights


def test_values_are_those_of_the_file(tmp_path: Path) -> None:
    check_kept(tmp_path / "model", write(tmp_path / "model", version="GEMM"))


def test_the_bundle_has_the_integers_of_the_file(tmp_path: Path) -> None:
    weights = write(tmp_path / "model")
    integers = {module: each.values for module, each in weights.items()}
    report = check_exported(tmp_path / "model", tmp_path / "bundle", integers)
    assert report.manifest.quantization["types"] == {"AWQ int4": len(weights)}


@pytest.mark.parametrize("settings", [{"version": "gemv"}, {"bits": 8}])
def test_other_formats_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    write(tmp_path / "model", **settings)
    with pytest.raises(SourceError, match=r"\(awq\).*export the float model"):
        load_source(str(tmp_path / "model"))
