"""What is saved besides weights: tokenizers, configurations, sizes of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import pytest
import tokenizers
import transformers

from edgetie.errors import SourceError
from edgetie.sources import extras
from edgetie.sources.load import load_source


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    models.transformers_model("Llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_extras_without_a_tokenizer(saved: Path, tmp_path: Path) -> None:
    source = load_source(str(saved))
    assert (source.kind, source.name, source.task) == ("transformers", "model", "causal-lm")
    (tmp_path / "extras").mkdir()
    source.save_extras(tmp_path / "extras")
    names = {path.name for path in (tmp_path / "extras").iterdir()}
    assert names == {"config.json", "generation_config.json"}


def test_halves_of_characters_in_settings_are_refused(saved: Path, tmp_path: Path) -> None:
    words = tokenizers.models.WordLevel({"a": 0}, unk_token="a")
    tokenizers.Tokenizer(words).save(str(saved / "tokenizer.json"))
    settings = '{"tokenizer_class": "PreTrainedTokenizerFast", "backend": "\\ud800"}'
    (saved / "tokenizer_config.json").write_text(settings, encoding="utf-8")
    source = load_source(str(saved))
    with pytest.raises(SourceError, match=r"text that is not Unicode \('\\ud800'\); repair"):
        source.save_extras(tmp_path)


def test_tokenizers_are_saved_compactly_and_for_older_transformers(tmp_path: Path) -> None:
    model = tokenizers.models.WordLevel({"a": 0, "b": 1}, "a")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model), chat_template="{{ messages }}"
    )
    extras.save_tokenizer(tokenizer, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["chat_template"] == "{{ messages }}"
    text = (tmp_path / "tokenizer.json").read_text()
    assert "\n" not in text
    assert json.loads(text)["model"]["vocab"] == {"a": 0, "b": 1}


def test_progress_bars_come_back() -> None:
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    with extras.quiet_transformers():
        assert not logging.is_progress_bar_enabled()
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"size": {"height": 16, "width": 24}}, (16, 24)),
        ({"size": 16}, (16, 16)),
        ({"size": {"shortest_edge": 20}, "crop_size": 16, "do_center_crop": True}, (16, 16)),
        ({"size": {"shortest_edge": 20}}, None),
    ],
)
def test_the_size_of_images_is_that_of_the_processor(
    tmp_path: Path, settings: dict[str, Any], size: tuple[int, int] | None
) -> None:
    encoder = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    decoder = transformers.TrOCRConfig(
        vocab_size=9, d_model=8, decoder_layers=1, decoder_attention_heads=1, decoder_ffn_dim=8,
        max_position_embeddings=8,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    transformers.VisionEncoderDecoderModel(config).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    source = load_source(str(tmp_path / "model"))
    assert (source.task, source.image_size) == ("image-to-text", size)
    (tmp_path / "copy").mkdir()
    source.save_extras(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "preprocessor_config.json").read_text()) == settings
