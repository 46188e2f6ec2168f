"""Tokenizers as tables, read back in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_models as tiny

from edgetie.deploy.tokenizer_tables import write_tables
from edgetie.errors import BundleError


def settings(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(tiny.byte_tokenizer().to_str())
    return data | changes


def written(folder: Path, data: dict[str, Any]) -> bytes:
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    write_tables(folder / "tokenizer.json", folder / "tokenizer.bin")
    return (folder / "tokenizer.bin").read_bytes()


def test_tables_hold_tokens_and_merges(tmp_path: Path) -> None:
    data = settings()
    raw = written(tmp_path, data)
    assert raw[:4] == b"EDT1"
    tokens, merges, added, letters, numbers, spaces, digits = np.frombuffer(raw, "<u4", 7, 4)
    assert (tokens, added, digits) == (tiny.VOCAB, len(tiny.SPECIAL), 0)
    assert merges == len(data["model"]["merges"])
    table = np.frombuffer(raw, "<u4", offset=32, count=256)
    vocabulary = data["model"]["vocab"]
    assert table[ord("a")] == vocabulary["a"]
    pairs = np.frombuffer(raw, "<u4", 4 * merges, 32 + 1024).reshape(-1, 4)
    assert (np.diff(pairs[:, 0].astype(int)) >= 0).all()
    left, right = data["model"]["merges"][0]
    first = pairs[pairs[:, 2] == 0][0]
    assert first.tolist() == [vocabulary[left], vocabulary[right], 0, vocabulary[left + right]]
    ranges = letters + numbers + spaces
    place = 32 + 1024 + 16 * int(merges) + 8 * int(added) + 8 * int(ranges)
    starts = np.frombuffer(raw, "<u4", int(tokens) + 1, place)
    text = raw[place + 4 * (int(tokens) + 1) :]
    assert len(text) == starts[-1]
    token = vocabulary[left + right]
    decoded = tiny.byte_tokenizer().decode([token], skip_special_tokens=False)
    assert text[starts[token] : starts[token + 1]].decode() == decoded


def test_single_digits_are_noted(tmp_path: Path) -> None:
    steps = [{"type": "Digits", "individual_digits": True}, settings()["pre_tokenizer"]]
    raw = written(tmp_path, settings(pre_tokenizer={"type": "Sequence", "pretokenizers": steps}))
    assert np.frombuffer(raw, "<u4", 7, 4)[-1] == 1


def test_tokenizers_that_tables_cannot_hold_are_refused(tmp_path: Path) -> None:
    byte_level = settings()["pre_tokenizer"]
    token = {"content": "a", "id": 1, "special": False, "rstrip": False, "single_word": False}
    numbers = {"type": "Digits", "individual_digits": False}
    model = {"type": "BPE", "vocab": {}, "merges": []}
    for changes, reason in (
        ({"model": {"type": "Unigram"}}, "a Unigram model; .*deploy for python"),
        ({"model": model | {"byte_fallback": True}}, "a BPE model"),
        ({"model": model | {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
        ({"model": model | {"continuing_subword_prefix": "##"}}, "continuing_subword_prefix"),
        ({"model": model | {"dropout": 0.5}}, "dropout"),
        ({"normalizer": {"type": "NFC"}}, r"a normalizer \(NFC\)"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "a pre-tokenizer of Whitespace"),
        ({"pre_tokenizer": byte_level | {"add_prefix_space": True}}, "prepends a space"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [numbers, byte_level]}},
            "whole numbers",
        ),
        ({"added_tokens": [token | {"lstrip": True}]}, r"takes spaces \(a\)"),
        ({"model": model | {"vocab": {"\u4e00": 0}}}, "a token that is not of bytes"),
    ):
        with pytest.raises(BundleError, match=reason):
            written(tmp_path, settings(**changes))
        assert not (tmp_path / "tokenizer.bin").exists()


def test_a_tokenizer_without_added_tokens_is_written(tmp_path: Path) -> None:
    backend = tiny.byte_tokenizer()
    data = json.loads(backend.to_str())
    del data["added_tokens"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    write_tables(tmp_path / "tokenizer.json", tmp_path / "tokenizer.bin")
    assert (tmp_path / "tokenizer.bin").read_bytes()[:4] == b"EDT1"


@pytest.mark.parametrize("number", [2**31 - 1, 2**40])
def test_a_token_id_that_no_model_has_is_refused(tmp_path: Path, number: int) -> None:
    data = settings()
    data["model"]["vocab"]["a"] = number
    with pytest.raises(BundleError, match=rf"tokenizer.json: token 'a' has the id {number}"):
        written(tmp_path, data)
    assert not (tmp_path / "tokenizer.bin").exists()
