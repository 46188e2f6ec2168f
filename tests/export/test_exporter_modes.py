"""Models whose computation depends on how long a text is, or on more than one floating type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from models import source_of

from edgetie.errors import EdgetieError, ExportError
from edgetie.export.exporter import ExportReport, export_model
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.session import open_session

pytestmark = pytest.mark.slow

_COMMON = {
    "vocab_size": 200, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 96, "max_position_embeddings": 256, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def make(kind: str, head: str = "ForCausalLM", **settings: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**_COMMON, **settings})
    model = getattr(transformers, f"{kind}{head}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def assert_long_text_is_as_in_torch(report: ExportReport, model: Any, length: int) -> None:
    ids = np.random.default_rng(0).integers(3, 200, (1, length))
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits[0, -1].numpy()
    decoder = Decoder(open_session(report.bundle, threads=1), 1, length)
    found = decoder.prefill(ids)[0]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_angles_chosen_by_the_longest_position(tmp_path: Path) -> None:
    """LongRoPE: short factors below 128 tokens, long ones above."""
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 128,
        "short_factor": [1.0] * 8, "long_factor": [1 + 0.2 * index for index in range(8)],
    }  # fmt: skip
    own = {"original_max_position_embeddings": 128, "max_position_embeddings": 4096}
    model = make("Phi3", **own, rope_parameters=rope)
    report = export_model(source_of(model), tmp_path / "out")
    assert report.agreement.relative < 1e-5
    assert report.manifest.signature.cache_in_place
    assert report.manifest.fusion["operators"]["rotary inside attention"] == 0
    assert any("more than the position" in text for text in report.manifest.fusion["unfused"])
    for length in (40, 200):
        assert_long_text_is_as_in_torch(report, model, length)


def test_angles_that_change_behind_the_longest_sequence(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = make("Llama", num_key_value_heads=2, rope_parameters=rope)
    report = export_model(source_of(model), tmp_path / "out")
    assert report.manifest.fusion["operators"]["rotary inside attention"] == 2
    assert model.model.rotary_emb.rope_type == "dynamic"  # as it was
    assert_long_text_is_as_in_torch(report, model, 256)


def test_a_mode_that_a_short_text_switches_is_refused(tmp_path: Path) -> None:
    model = make("BigBird", "ForMaskedLM", block_size=8, num_random_blocks=1)
    message = "turned attention_type from block_sparse to original_full.*set attention_type to"
    with pytest.raises(ExportError, match=message):
        export_model(source_of(model), tmp_path / "out")
    whole = make("BigBird", "ForMaskedLM", attention_type="original_full")
    assert export_model(source_of(whole), tmp_path / "out").agreement.relative < 1e-5


@pytest.mark.parametrize("multi_query", [False, True])
def test_slopes_in_bfloat16(tmp_path: Path, multi_query: bool) -> None:
    model = make("Falcon", alibi=True, multi_query=multi_query)
    report = export_model(source_of(model), tmp_path / "out")
    assert report.agreement.relative < 1e-5
    assert_long_text_is_as_in_torch(report, model, 100)


def test_a_table_of_positions_in_a_buffer_is_halved_too(tmp_path: Path) -> None:
    model = make("XGLM", d_model=64, num_layers=2, attention_heads=4, ffn_dim=96)
    report = export_model(source_of(model), tmp_path / "out", precision="fp16")
    assert report.agreement.relative < 1e-2


def test_padding_on_the_right_only_where_it_is_right(tmp_path: Path) -> None:
    ids, mask = np.array([[5, 6, 7, 0], [8, 9, 10, 11]]), np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    own = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    neo = export_model(source_of(make("GPTNeo", **own, window_size=8)), tmp_path / "neo")
    assert neo.manifest.signature.padding == "left"
    with pytest.raises(EdgetieError, match="accepts padding on the left only"):
        Decoder(open_session(neo.bundle), 2, 8).prefill(ids, mask)
    llama = export_model(source_of(make("Llama")), tmp_path / "llama")
    assert llama.manifest.signature.padding == "both"
    Decoder(open_session(llama.bundle), 2, 8).prefill(ids, mask)
