"""Float8 with scales of blocks: dequantized only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quantized_checkpoints import write_checkpoint

from edgetie.errors import SourceError
from edgetie.sources.load import load_source

BLOCK = 48  # of rows and columns; the last ones are smaller


def write(directory: Path, **settings: Any) -> dict[str, torch.Tensor]:
    expected: dict[str, torch.Tensor] = {}

    def layer(module: str, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
        values = torch.randn(shape).to(torch.float8_e4m3fn)
        scales = torch.rand([-(-size // BLOCK) for size in shape])
        repeated = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        expected[module] = values.float() * repeated[: shape[0], : shape[1]]
        return {"weight": values, "weight_scale_inv": scales}

    write_checkpoint(directory, {"quant_method": "fp8"} | settings, layer)
    return expected


def test_values_are_those_of_the_file(tmp_path: Path) -> None:
    expected = write(tmp_path / "model", weight_block_size=[BLOCK, BLOCK])
    with pytest.raises(SourceError, match=r"_proj\.weight of type fp8 F8_E4M3 .*evenly") as refused:
        load_source(str(tmp_path / "model"))
    assert refused.value.advice == {"dequantize": True}
    module = load_source(str(tmp_path / "model"), dequantize=True).module
    for name, values in expected.items():
        assert torch.equal(module.get_parameter(f"{name}.weight"), values)


def test_scales_of_whole_tensors_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "model")
    with pytest.raises(SourceError, match=r"\(fp8\).*export the float model"):
        load_source(str(tmp_path / "model"))
