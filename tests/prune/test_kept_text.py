"""Texts and lists of tokens are read, and bad ones refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import runtime_models

from edgetie.bundle.bundle import open_bundle
from edgetie.errors import PruneError
from edgetie.prune.kept_text import chat_tokens, chunks, read_texts, read_tokens
from edgetie.runtime.text.tokenizer import Tokenizer


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_texts_and_files(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("naïve", encoding=encoding)
    assert read_texts([tmp_path / "a.txt", "other"]) == ["naïve", "other"]
    assert "".join(chunks(["é" * (3 << 20)])) == "é" * (3 << 20)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_tokens_and_files(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("4 5\n6\n", encoding=encoding)
    assert read_tokens([tmp_path / "ids.txt", 9], 10) == {4, 5, 6, 9}


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "has no text"), (b" \n", "has no text"), (b"\xff\xfe", "not readable as UTF-8")],
)
def test_bad_texts(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(PruneError, match=rf"keep_text=.*{problem}"):
        read_texts([path])
    with pytest.raises(PruneError, match="is the name of a file"):
        read_texts([str(path)])
    with pytest.raises(PruneError, match="not readable as UTF-8 text"):
        read_texts([tmp_path / "missing.txt"])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "has no tokens"), (b"1 x", "not a file of token numbers"),
        (b"1 10", "no token 10, only 10"), (b"-1", "no token -1"),
        (b"\xff", "not a file of token numbers"),
    ],
)  # fmt: skip
def test_bad_tokens(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(content)
    with pytest.raises(PruneError, match=rf"keep_tokens=.*{problem}"):
        read_tokens([path], 10)


def test_tokens_of_a_chat_template(tmp_path: Path) -> None:
    bundle = open_bundle(runtime_models.write_chat_bundle(tmp_path / "chat"))
    tokenizer = Tokenizer.from_bundle(bundle)
    tokens = chat_tokens(tokenizer)
    assert {*tokenizer.encode("<|im_start|>user\n"), *tokenizer.encode("<|im_end|>\n")} <= tokens
    tokenizer.chat_template = None
    assert chat_tokens(tokenizer) == set()
