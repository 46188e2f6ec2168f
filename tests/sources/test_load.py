"""What is in a model's files, and is not in the model that transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import models
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from edgetie.errors import SourceError
from edgetie.export.exporter import export_model
from edgetie.harness.accuracy.references import BundleReference
from edgetie.sources.load import load_source

IDS = np.random.default_rng(3).integers(3, 300, (1, 60))
VOCAB, WIDTH, HEADS, KEYS, LAYERS = 320, 64, 4, 2, 2
SIZE = WIDTH // HEADS
FREQUENCIES = np.linspace(1, 8, SIZE // 2).astype(np.float32)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    models.transformers_model("Llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(directory: Path, **settings: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_weights_of_more_layers_are_refused(saved: Path) -> None:
    change(saved, num_hidden_layers=1)
    with pytest.raises(SourceError, match=r"more layers .*model\.layers\.1\..*config\.json"):
        load_source(str(saved))


def test_weights_that_are_not_used_are_named(saved: Path, tmp_path: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.bias"
    save_file(weights | {name: torch.zeros(WIDTH)}, saved / "model.safetensors", {"format": "pt"})
    report = export_model(load_source(str(saved)), tmp_path / "bundle")
    assert report.manifest.source["unused"] == [name]


def test_an_adapter_that_would_be_left_out_is_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetie.sources.load.pretrained.find_spec", lambda name: None)
    (saved / "adapter_config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"adapter_config\.json.* peft"):
        load_source(str(saved))


def write_gguf(
    path: Path,
    *,
    scaling: tuple[str, float] | None = None,
    tables: dict[str, np.ndarray] | None,
    layers: int = LAYERS,
) -> Path:
    """A small Llama, without a tokenizer; the same weights each time."""
    rng, writer = np.random.default_rng(0), gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(512)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(SIZE)
    writer.add_vocab_size(VOCAB)
    if scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling[0]))
        writer.add_rope_scaling_factor(scaling[1])
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (VOCAB, WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm": (WIDTH,),
                "ffn_norm": (WIDTH,),
                "attn_q": (WIDTH, WIDTH),
                "attn_k": (KEYS * SIZE, WIDTH),
                "attn_v": (KEYS * SIZE, WIDTH),
                "attn_output": (WIDTH, WIDTH),
                "ffn_gate": (128, WIDTH),
                "ffn_up": (128, WIDTH),
                "ffn_down": (WIDTH, 128),
            }.items()
        }
    for name, shape in shapes.items():
        array = 0.3 * rng.standard_normal(shape) + (len(shape) == 1)
        writer.add_tensor(f"{name}.weight", array.astype(np.float32))
    for name, table in (tables or {}).items():
        writer.add_tensor(name, table)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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
    export_model(load_source(str(path)), tmp_path / "bundle")
    plain = load_source(str(write_gguf(tmp_path / "plain.gguf", tables=None))).module
    ids = torch.from_numpy(IDS)
    with torch.no_grad():
        unscaled = plain(ids).logits[0].numpy()
        plain.model.rotary_emb.inv_freq /= torch.tensor(divisor)
        expected = plain(ids).logits[0].numpy()
    found = BundleReference(tmp_path / "bundle").logits(IDS)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(found - unscaled).max() > 1e-2 * np.abs(expected).max()


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


def test_roberta_counts_its_positions_itself(tmp_path: Path) -> None:
    """From its padding token on: the first rows of the table are no positions."""
    from edgetie.harness.accuracy.check import check_model

    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=128,
        num_hidden_layers=2, max_position_embeddings=130, pad_token_id=1,
    )  # fmt: skip
    transformers.RobertaForMaskedLM(config).save_pretrained(tmp_path / "roberta")
    report = export_model(load_source(str(tmp_path / "roberta")), tmp_path / "bundle")
    assert report.manifest.signature.max_positions == 128
    checked = check_model(report.bundle, str(tmp_path / "roberta"), window=256)
    assert checked.relative_error < 1e-5
