"""Measure schemes of quantization, edgetie's and others': size, speed, memory and accuracy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import catalogue
import click
import table
from rows import ROWS, SCHEMES
from session import Session, Settings, command_options, open_session, prompt_options

WINDOW = 512
"""Tokens that are read at once, with nothing before them."""


def write_text(session: Session, tokens: int) -> Path:
    """The first token ids of the text, in whole windows."""
    ids = json.loads((session.needed(catalogue.TEXT) / "ids.json").read_text("utf-8"))
    file = session.workshop.directory / "text.json"
    file.write_text(json.dumps(ids[: tokens // WINDOW * WINDOW]), encoding="utf-8")
    return file


def measure_accuracy(session: Session, text: Path) -> dict[str, dict[str, Any]]:
    """Each row's distance from the logits of its reference."""
    found: dict[str, dict[str, Any]] = {}
    for reference in dict.fromkeys(ROWS[name].reference for name in session.runs):
        logits = session.workshop.directory / f"{reference}.logits"
        options = ["--accuracy", str(text), "--window", str(WINDOW)]
        options += ["--reference-logits", str(logits)]
        own: dict[str, Any] = {}
        try:
            for name in session.sound_rows():
                if ROWS[name].reference != reference:
                    continue
                with session.noting(name, "accuracy"):
                    if not own:
                        own = session.work_once(reference, "logits", *options, "--write-logits")
                    compared = name != reference
                    found[name] = session.work_once(name, "accuracy", *options) if compared else own
        finally:
            logits.unlink(missing_ok=True)
    return found


def count_copies(session: Session) -> dict[str, int]:
    """How often the file of each of edgetie's rows holds the tied table."""
    copies = {}
    for name in session.sound_rows():
        row = ROWS[name]
        if row.environment == "edgetie":
            with session.noting(name, "inspection"):
                command = ["edgetie", "inspect", "--json", str(session.workshop.model(row.model))]
                answer = session.workshop.run(row.environment, command, f"inspect-{name}")
                groups = json.loads(answer)["tie_groups"]
                copies[name] = max((group["copies"]["file"] for group in groups), default=0)
    return copies


@click.command(help=__doc__)
@command_options(SCHEMES, gigabytes=18)
@click.option(
    "--tokens",
    type=click.IntRange(2 * WINDOW),
    default=40 * WINDOW,
    show_default=True,
    help=f"Tokens of the text that accuracy is measured on, in windows of {WINDOW}.",
)
@prompt_options
def main(tokens: int, prompt_tokens: int, new_tokens: int, **options: Any) -> None:
    with open_session(Settings(**options), SCHEMES) as session:
        session.ask(prompt_tokens, new_tokens)
        text = write_text(session, tokens)
        session.prepare()
        session.measure()
        accuracy = measure_accuracy(session, text)
        copies = count_copies(session)
    report = {
        **session.report(),
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "window": WINDOW,
        "accuracy": accuracy,
        "copies": copies,
    }
    session.publish(table.render_schemes(report), report)


if __name__ == "__main__":
    main()
