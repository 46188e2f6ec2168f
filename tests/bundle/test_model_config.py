"""Token ids of a model are read from its configuration files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetie.bundle.model_config import declare_ties, read_token_ids
from edgetie.errors import BundleError


def write(directory: Path, name: str, **settings: Any) -> None:
    (directory / name).write_text(json.dumps(settings), encoding="utf-8")


def start_token_ids(directory: Path) -> list[int]:
    starts: list[int] = read_token_ids(directory, has_encoder=True)["start_token_ids"]
    return starts


def test_no_files_no_settings(tmp_path: Path) -> None:
    assert not any(read_token_ids(tmp_path, has_encoder=True).values())


def test_generation_config_comes_before_config(tmp_path: Path) -> None:
    write(tmp_path, "config.json", eos_token_id=[3, 4], bos_token_id=1)
    assert read_token_ids(tmp_path)["eos_token_ids"] == [3, 4]
    write(tmp_path, "generation_config.json", eos_token_id=2, bos_token_id=None)
    assert read_token_ids(tmp_path)["eos_token_ids"] == [2]
    assert start_token_ids(tmp_path) == [1]
    assert read_token_ids(tmp_path)["start_token_ids"] == []


def test_start_of_a_decoder(tmp_path: Path) -> None:
    write(
        tmp_path, "config.json", decoder_start_token_id=5, forced_decoder_ids=[[1, None], [2, 6]],
        no_timestamps_token_id=7,
    )  # fmt: skip
    assert start_token_ids(tmp_path) == [5, 6, 7]
    write(tmp_path, "generation_config.json", forced_decoder_ids=[[1, 7]])
    assert start_token_ids(tmp_path) == [5, 7]


@pytest.mark.parametrize("part", ["decoder", "text_config"])
def test_a_decoder_in_a_model_of_several_parts(tmp_path: Path, part: str) -> None:
    nested = {"bos_token_id": 5, "eos_token_id": 6, "sep_token_id": 7}
    write(tmp_path, "config.json", **{part: nested})
    assert start_token_ids(tmp_path) == [5]
    assert read_token_ids(tmp_path, has_encoder=True)["eos_token_ids"] == [6, 7]
    assert read_token_ids(tmp_path)["eos_token_ids"] == []
    write(tmp_path, "generation_config.json", decoder_start_token_id=8, eos_token_id=9)
    assert start_token_ids(tmp_path) == [8]
    assert read_token_ids(tmp_path, has_encoder=True)["eos_token_ids"] == [9, 7]


def test_suppressed_tokens_and_languages(tmp_path: Path) -> None:
    write(
        tmp_path, "generation_config.json", suppress_tokens=[8], begin_suppress_tokens=[9],
        lang_to_id={"<|en|>": 10},
    )  # fmt: skip
    ids = read_token_ids(tmp_path)
    assert ids["suppressed_token_ids"] == [8]
    assert ids["begin_suppressed_token_ids"] == [9]
    assert ids["language_token_ids"] == {"en": 10}


@pytest.mark.parametrize("text", ["{", "[]"])
def test_file_that_is_not_valid_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=r"config\.json: not valid JSON"):
        read_token_ids(tmp_path)


def test_ties_are_declared_at_every_level(tmp_path: Path) -> None:
    declare_ties(tmp_path, True)
    assert not list(tmp_path.iterdir())
    text = {"tie_word_embeddings": True, "vocab_size": 5}
    write(tmp_path, "config.json", model_type="é", tie_word_embeddings=True, text_config=text)
    declare_ties(tmp_path, False)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == {
        "model_type": "é",
        "tie_word_embeddings": False,
        "text_config": {"tie_word_embeddings": False, "vocab_size": 5},
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [("eos_token_id", {"a": 1}), ("eos_token_id", ["x"]), ("suppress_tokens", 1 << 40),
     ("forced_decoder_ids", [1]), ("lang_to_id", [1])],
)  # fmt: skip
def test_settings_of_the_wrong_kind_are_named(tmp_path: Path, name: str, value: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({name: value}), encoding="utf-8")
    with pytest.raises(BundleError, match=rf"{name} in its .*config\.json is"):
        read_token_ids(tmp_path)
