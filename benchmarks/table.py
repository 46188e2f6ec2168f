"""The Markdown table of a report: medians, best values, and ratios to edgetie's row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import catalogue

Run = dict[str, Any]
MEGABYTE = 1e6


@dataclass(frozen=True)
class Column:
    """A measured quantity: its heading, its value in a run, its digits, and what is best."""

    heading: str
    value: Callable[[Run], float]
    digits: int
    best: Callable[[list[float]], float] = min

    def cell(self, runs: list[Run]) -> str:
        """The median, and the best in brackets where it reads differently."""
        values = [self.value(run) for run in runs]
        middle, best = (
            f"{number:.{self.digits}f}" for number in (median(values), self.best(values))
        )
        return middle if middle == best else f"{middle} ({best})"

    def ratio(self, runs: list[Run], own: list[Run]) -> str:
        """The quotient of two medians."""
        divisor = median(self.value(run) for run in own)
        return f"{median(self.value(run) for run in runs) / divisor:.2f}" if divisor else "–"


COLUMNS = (
    Column("files MB", lambda run: run["file_bytes"] / MEGABYTE, 0),
    Column("load s", lambda run: run["load_seconds"], 2),
    Column("prefill ms", lambda run: run["prefill_ms"], 0),
    Column("decode tok/s", lambda run: run["decode_tokens_per_second"], 1, max),
    Column("private MB", lambda run: run["anonymous_bytes"] / MEGABYTE, 0),
    Column("resident MB", lambda run: run["rss_bytes"] / MEGABYTE, 0),
    Column("peak MB", lambda run: run["peak_rss_bytes"] / MEGABYTE, 0),
)


def render(report: dict[str, Any]) -> str:
    """The tables and what is needed to read them, as Markdown."""
    runs: dict[str, list[Run]] = report["runs"]
    failures: dict[str, str] = report["failures"]
    measured = [name for name in runs if runs[name]]
    parts = [
        f"{report['model']}, prompt of {report['prompt_tokens']} tokens, {report['new_tokens']}"
        f" greedy tokens, {report['rounds']} interleaved rounds; median (best)."
        f" {report['machine']}.",
        _values(runs, report["same_tokens"], report["new_tokens"]),
    ]
    ratios = _ratios({name: runs[name] for name in measured})
    if ratios:
        parts += [
            "Divided by edgetie's row of the same precision. Less is better for all but decode.",
            ratios,
        ]
    if failures:
        parts.append(_bullets("What could not be done", failures))
    parts.append(_bullets("Versions", report["versions"]))
    return "\n\n".join(parts) + "\n"


def _values(runs: dict[str, list[Run]], same_tokens: dict[str, int], new_tokens: int) -> str:
    headings = ["peer", "", *(column.heading for column in COLUMNS), "same tokens"]
    rows = []
    for name, peer_runs in runs.items():
        if peer_runs:
            cells = [column.cell(peer_runs) for column in COLUMNS]
            cells.append(f"{same_tokens[name]} of {new_tokens}" if name in same_tokens else "–")
        else:
            cells = ["not measured, see below"] + ["–"] * len(COLUMNS)
        rows.append([*_title(name), *cells])
    return _table(headings, rows)


def _ratios(runs: dict[str, list[Run]]) -> str:
    rows = []
    for name, peer_runs in runs.items():
        own = runs.get(catalogue.OWN_PEERS[catalogue.PEERS[name].precision])
        if own and own is not peer_runs:
            rows.append([*_title(name), *(column.ratio(peer_runs, own) for column in COLUMNS)])
    headings = ["peer", "", *(column.heading.rsplit(" ", 1)[0] for column in COLUMNS)]
    return _table(headings, rows) if rows else ""


def _title(name: str) -> list[str]:
    peer = catalogue.PEERS[name]
    return [peer.label, peer.precision]


def _table(headings: list[str], rows: list[list[str]]) -> str:
    rule = ["---"] * 2 + ["---:"] * (len(headings) - 2)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [headings, rule, *rows])


def _bullets(title: str, items: dict[str, str]) -> str:
    lines = (f"- {' '.join(_title(name))}: {text}" for name, text in items.items())
    return f"{title}:\n\n" + "\n".join(lines)
