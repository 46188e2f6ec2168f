"""``edgetie prune-vocab`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import runtime_models
from command_line import edgetie, refused

from edgetie_cli.prune_vocab import command


def run(*arguments: object) -> None:
    command.main([str(argument) for argument in arguments], standalone_mode=False)


def test_json_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = runtime_models.write_chat_bundle(tmp_path / "chat")
    (tmp_path / "a.txt").write_text("the user said hello", encoding="utf-8")
    (tmp_path / "ids.txt").write_text("5 319", encoding="utf-8")
    arguments = (
        source, "--output", tmp_path / "small", "--keep-text", tmp_path / "a.txt",
        "--keep-tokens", tmp_path / "ids.txt",
    )  # fmt: skip
    run(*arguments, "--json")
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {
        "bundle", "rows_before", "rows_after", "table_bytes_before", "table_bytes_after",
        "bytes_before", "bytes_after", "text", "unseen", "logits_error", "seconds",
    }  # fmt: skip
    assert answer["rows_before"] == 320 > answer["rows_after"]
    assert answer["text"]["tokens_per_word_before"] == answer["text"]["tokens_per_word_after"] > 1
    assert answer["unseen"] is None
    kept = (tmp_path / "small" / "kept_tokens.txt").read_text("utf-8").split()
    assert {"5", "319"} <= {*kept}
    run(*arguments, "--force")
    text = capsys.readouterr().out
    assert f"{answer['rows_after']}" in text
    assert "tokens per word, kept text" in text


def test_languages_with_a_text(tmp_path: Path) -> None:
    source = runtime_models.write_chat_bundle(tmp_path / "chat")
    (tmp_path / "a.txt").write_text("hello", encoding="utf-8")
    sizes = []
    for languages in ("ru", "ru, en"):
        arguments = ("--keep-languages", languages, "--keep-text", tmp_path / "a.txt", "--force")
        run(source, "--output", tmp_path / "small", *arguments)
        sizes.append(len((tmp_path / "small" / "kept_tokens.txt").read_text("utf-8").split()))
    assert sizes[0] < sizes[1] <= 320  # its words are of Latin letters


def test_bad_input(tmp_path: Path) -> None:
    source = runtime_models.write_chat_bundle(tmp_path / "chat")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "ids.txt").write_text("320", encoding="utf-8")
    base = ("prune-vocab", str(source), "--output", "small")
    for option, file, problem in (
        ("--keep-text", "empty.txt", "--keep-text empty.txt: has no text"),
        ("--keep-text", "missing.txt", "--keep-text missing.txt: not readable as UTF-8 text"),
        ("--keep-tokens", "ids.txt", "--keep-tokens ids.txt: the model has no token 320, only 320"),
    ):
        refused(edgetie(*base, option, file, cwd=tmp_path), problem)
    refused(
        edgetie(*base, "--keep-languages", "en,german", cwd=tmp_path),
        "--keep-languages german: not the code of a language (ISO 639); use de (German) or",
    )
    refused(edgetie(*base, cwd=tmp_path), "nothing to keep; pass --keep-text FILE or")
    assert not (tmp_path / "small").exists()
