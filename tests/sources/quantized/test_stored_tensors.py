"""Tensors of safetensors files: what is taken, what remains, integers in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from quantized_checkpoints import pack_words
from safetensors.torch import save_file

from edgetie.errors import SourceError
from edgetie.sources.quantized.stored_tensors import StoredTensors, unpack_integers


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{part}.safetensors") for part in (1, 2)]
    save_file({"a.weight": torch.ones(2).bfloat16(), "a.scale": torch.tensor(0.5)}, paths[0])
    save_file({"b.weight": torch.ones(2, dtype=torch.int8)}, paths[1], {"b": '{"kind": 3}'})
    return paths


def test_tensors_of_all_files_are_taken_once(files: list[str]) -> None:
    with StoredTensors(files) as tensors:
        assert sorted(tensors.modules("weight")) == ["a", "b"]
        assert (tensors.dtype("b.weight"), tensors.dtype("c.weight")) == ("I8", None)
        assert tensors.take_array("a.weight").dtype == np.float32
        assert tensors.take_array("a.scale") == np.float32(0.5)
        assert tensors.take_optional("a.scale") is None
        assert list(tensors.remaining) == ["b.weight"]
        with pytest.raises(SourceError, match=r"1\.safetensors: has no tensor a\.scale"):
            tensors.take("a.scale")
        assert (tensors.read_json("b"), tensors.read_json("a")) == ({"kind": 3}, {})
        tensors.drop(".weight")
        assert not tensors.remaining


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_of_all_sizes_are_unpacked(bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 1 << bits, (3, 64), np.uint8)
    assert np.array_equal(unpack_integers(pack_words(values, bits), bits), values)
