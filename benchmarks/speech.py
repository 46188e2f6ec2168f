"""Measure schemes of quantization on Whisper tiny.en: size, speed, memory and word errors."""

from __future__ import annotations

import json
import re
from typing import Any

import catalogue
import click
import table
from rows import SPEECH
from session import Settings, command_options, open_session

SPELLED_OUT = {"mr": "mister"}


def words(text: str) -> list[str]:
    """The words of a text, without what only writing has."""
    found = re.findall(r"[a-z0-9']+", text.lower())
    return [SPELLED_OUT.get(word, word) for word in found]


def word_errors(expected: list[str], found: list[str]) -> int:
    """The fewest words to insert, delete or replace (Levenshtein)."""
    row = list(range(len(found) + 1))
    for i, word in enumerate(expected, 1):
        above, row = row, [i]
        for j, other in enumerate(found, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (word != other)))
    return row[-1]


def count_errors(expected: dict[str, str], found: dict[str, str]) -> int:
    """Word errors of all clips together."""
    return sum(word_errors(words(text), words(found[name])) for name, text in expected.items())


@click.command(help=__doc__)
@command_options(SPEECH, gigabytes=5)
def main(**options: Any) -> None:
    with open_session(Settings(**options), SPEECH) as session:
        clips = session.needed(catalogue.CLIPS)
        said = json.loads((clips / "said.json").read_text("utf-8"))
        session.options += ["--clips", str(clips)]
        session.prepare()
        session.measure()
    texts = {name: runs[0]["texts"] for name, runs in session.runs.items() if runs}
    references = {"words wrong": said, "not as fp32": texts.get(SPEECH[0])}
    errors = {
        name: {
            title: count_errors(reference, found)
            for title, reference in references.items()
            if reference
        }
        for name, found in texts.items()
    }
    total = sum(len(words(text)) for text in said.values())
    report = {**session.report(), "words": total, "errors": errors}
    session.publish(table.render_speech(report, list(references)), report)


if __name__ == "__main__":
    main()
