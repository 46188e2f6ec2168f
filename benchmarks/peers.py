"""Measure edgetie against its peers on the same weights, interleaved, and print the table."""

from __future__ import annotations

import json
from typing import Any

import click
import table
from rows import PEERS, REFERENCE_PEER
from session import Session, Settings, command_options, open_session, prompt_options


def count_same_tokens(session: Session) -> dict[str, int]:
    """Each peer's agreement with the tokens of the reference, if that was measured."""
    counts: dict[str, int] = {}
    reference_runs = session.runs.get(REFERENCE_PEER)
    if not reference_runs:
        return counts
    reference = session.workshop.directory / "reference.json"
    reference.write_text(json.dumps(reference_runs[0]["token_ids"]), encoding="utf-8")
    for name in session.sound_rows():
        with session.noting(name, "comparison with the reference"):
            result = session.work_once(name, "compare", "--reference", str(reference))
            counts[name] = result["same_tokens"]
    return counts


@click.command(help=__doc__)
@command_options(PEERS, gigabytes=15)
@prompt_options
def main(prompt_tokens: int, new_tokens: int, **options: Any) -> None:
    with open_session(Settings(**options), PEERS) as session:
        session.ask(prompt_tokens, new_tokens)
        session.prepare()
        session.measure()
        same_tokens = count_same_tokens(session)
    report = {
        **session.report(),
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "same_tokens": same_tokens,
    }
    session.publish(table.render(report), report)


if __name__ == "__main__":
    main()
