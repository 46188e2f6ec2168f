"""GGUF files: weights that transformers leaves out, rotary frequencies, end tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import FREQUENCIES, LAYERS, WIDTH, write_gguf

from edgetie.errors import SourceError
from edgetie.sources import gguf as loader
from edgetie.sources.load import load_source

IDS = np.random.default_rng(3).integers(3, 300, (1, 60))


@pytest.mark.parametrize(
    ("lost", "layers", "message"),
    [
        ("blk.0.attn_q.bias", LAYERS, r"1 weights .*blk\.0\.attn_q\.bias"),
        ("output.bias", LAYERS, r"output\.bias"),
        (None, LAYERS - 1, rf"9 weights of layers .*blk\.{LAYERS - 1}\."),
    ],
)
def test_gguf_weights_that_transformers_leaves_out_are_refused(
    tmp_path: Path, lost: str | None, layers: int, message: str
) -> None:
    tables = {lost: np.ones(WIDTH, np.float32)} if lost else None
    path = write_gguf(tmp_path / "model.gguf", tables=tables, layers=layers)
    with pytest.raises(SourceError, match=message):
        load_source(str(path))


def test_other_gguf_weights_are_named(tmp_path: Path) -> None:
    tables = {"projector.weight": np.ones(WIDTH, np.float32)}
    source = load_source(str(write_gguf(tmp_path / "model.gguf", tables=tables)))
    assert source.unused == ["projector.weight"]


@pytest.mark.parametrize(
    ("scaling", "tables", "divisor"),
    [
        (("linear", 4.0), None, np.float32(4)),
        (None, {"rope_freqs.weight": FREQUENCIES}, FREQUENCIES),
    ],
)
def test_rotary_embeddings_of_gguf_files_are_scaled(
    tmp_path: Path, scaling: Any, tables: Any, divisor: Any
) -> None:
    path = write_gguf(tmp_path / "model.gguf", scaling=scaling, tables=tables)
    scaled = load_source(str(path)).module
    plain = load_source(str(write_gguf(tmp_path / "plain.gguf", tables=None))).module
    ids = torch.from_numpy(IDS)
    with torch.no_grad():
        unscaled = plain(ids).logits[0].numpy()
        plain.model.rotary_emb.inv_freq /= torch.tensor(divisor)
        expected = plain(ids).logits[0].numpy()
        scaled_logits = scaled(ids).logits[0].numpy()
    assert np.abs(scaled_logits - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(scaled_logits - unscaled).max() > 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("scaling", "tables", "message"),
    [
        (("yarn", 8.0), None, "scaling of type yarn"),
        (None, {"rope_factors_long.weight": FREQUENCIES}, r"rope_factors_long\.weight"),
    ],
)
def test_other_rotary_scaling_is_refused(
    tmp_path: Path, scaling: Any, tables: Any, message: str
) -> None:
    path = write_gguf(tmp_path / "model.gguf", scaling=scaling, tables=tables)
    with pytest.raises(SourceError, match=message):
        load_source(str(path))


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGML")
    with pytest.raises(SourceError, match="not a GGUF file"):
        load_source(str(tmp_path / "model.gguf"))


def test_another_task_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", tables=None)
    with pytest.raises(SourceError, match="is a model for causal-lm, not masked-lm"):
        load_source(str(path), task="masked-lm")


def test_transformers_is_left_as_it_was(tmp_path: Path) -> None:
    from transformers import modeling_gguf_pytorch_utils as loader

    before = gguf.GGUFReader, gguf.get_tensor_name_map, loader.get_gguf_hf_weights_map, loader.tqdm
    source = load_source(str(write_gguf(tmp_path / "model.gguf", tables=None)))
    after = gguf.GGUFReader, gguf.get_tensor_name_map, loader.get_gguf_hf_weights_map, loader.tqdm
    assert all(one is other for one, other in zip(before, after, strict=True))
    (tmp_path / "extras").mkdir()
    source.save_extras(tmp_path / "extras")
    names = {path.name for path in (tmp_path / "extras").iterdir()}
    assert names == {"config.json", "generation_config.json"}


@pytest.mark.parametrize("kind", ["Q2_K", "Q4_K", "Q6_K", "Q8_0", "IQ4_NL"])
def test_quantized_tables_are_decoded_as_gguf_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """In several chunks, whose last one is shorter."""
    monkeypatch.setattr(loader, "_CHUNK_BYTES", 1000)
    quantization = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[quantization]
    blocks = np.random.default_rng(0).integers(0, 60, (37, 512 // block * size), dtype=np.uint8)
    expected = gguf.quants.dequantize(blocks, quantization)
    with loader._adapted_loader():
        result = gguf.quants.dequantize(blocks, quantization)
    np.testing.assert_array_equal(result, expected)
    assert result.shape == (37, 512)


def test_decoded_tensors_are_not_copied_again_but_views_of_the_file_are(tmp_path: Path) -> None:
    from transformers import modeling_gguf_pytorch_utils

    blocks = np.zeros((8, 34), np.uint8)
    with loader._adapted_loader():
        decoded = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
        assert modeling_gguf_pytorch_utils.np.copy(decoded) is decoded
    path = write_gguf(tmp_path / "model.gguf", tables=None)
    table = load_source(str(path)).module.get_input_embeddings().weight.detach()
    before = table.clone()
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(table, before)


def test_headers_are_read_as_gguf_does(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", scaling=("linear", 4.0), tables=None)
    expected = gguf.GGUFReader(str(path))
    with loader._adapted_loader():
        result = gguf.GGUFReader(str(path))
    assert {name: field.contents() for name, field in result.fields.items()} == {
        name: field.contents() for name, field in expected.fields.items()
    }
    for ours, theirs in zip(result.tensors, expected.tensors, strict=True):
        np.testing.assert_array_equal(ours.data, theirs.data)


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", tables=None)
    whole = path.read_bytes()
    for length in (200, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(SourceError, match=r"cannot be loaded .*download it again"):
            load_source(str(path))
