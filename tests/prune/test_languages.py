"""Languages are characters of scripts, and what is no language is refused with similar ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgetie.errors import PruneError
from edgetie.prune.languages import characters_of


@pytest.mark.parametrize(
    ("language", "text", "foreign"),
    [
        ("de", "Größe: 12 €, naïve – „ﬁ“ 🙂", "Ж"),
        ("ru", "Ёлка № 5.", "a"),
        ("ja", "日本語のテスト、ーです。", "한"),
        ("ko", "한국어 漢字", "あ"),
        ("zh-TW", "臺灣", "ㄱ"),
        ("hi", "नमस्ते।", "ব"),
        ("sr", "Љубав", "ljubav"),
        ("sr-Latn", "ljubav", "Љубав"),
    ],
)
def test_characters(language: str, text: str, foreign: str) -> None:
    characters = characters_of([language])
    assert characters.make_text(text)
    assert not characters.make_text(text + foreign)
    assert characters_of([language, "en"]).make_text(text + "en")


def test_bytes_of_a_text_cut_anywhere() -> None:
    characters = characters_of(["ru", "ja"])
    data = "Ёлка 猫🙂か".encode()
    for start in range(len(data)):
        for end in range(start + 1, len(data) + 1):
            assert characters.make_bytes(data[start:end])
    for foreign in ("é", "한"):
        for part in (foreign.encode(), foreign.encode()[:-1] + b"a", b" " + foreign.encode()[:2]):
            assert not characters.make_bytes(part)
    assert not characters.make_bytes(b"\xff")


@pytest.mark.parametrize(
    ("language", "hint"),
    [
        ("german", r"use de \(German\)"), ("jp", r"use ja \(Japanese\)"),
        ("", "use one such as de, ja or zh-TW"), ("x" * 300, "use one such as"),
        ("und", "not the code of a language"), ("de-Xxxx", "no characters of the script Xxxx"),
        ("gml", "no characters of the script Latf"),
    ],
)  # fmt: skip
def test_an_unknown_language(language: str, hint: str) -> None:
    with pytest.raises(PruneError, match=hint) as error:
        characters_of(["en", language])
    assert error.value.parameter == "keep_languages"
    assert len(str(error.value)) < 220


def test_babel_is_an_extra() -> None:
    script = (
        "import sys; sys.modules['babel'] = None\n"
        "import edgetie\n"
        "from edgetie.prune.languages import characters_of\n"
        "try: characters_of(['de'])\n"
        "except edgetie.EdgetieError as error: print(error)"
    )
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 'pip install ".[languages]"' in run.stdout
