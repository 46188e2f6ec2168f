"""The Markdown tables of reports: medians, best values, and ratios to edgetie's row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from catalogue import SOURCE_TITLE
from rows import OWN_PEERS, ROWS

Run = dict[str, Any]
Report = dict[str, Any]
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


FILES = Column("files MB", lambda run: run["file_bytes"] / MEGABYTE, 0)
LOAD = Column("load s", lambda run: run["load_seconds"], 2)
PRIVATE = Column("private MB", lambda run: run["anonymous_bytes"] / MEGABYTE, 0)
RESIDENT = Column("resident MB", lambda run: run["rss_bytes"] / MEGABYTE, 0)
COLUMNS = (
    FILES,
    LOAD,
    Column("prefill ms", lambda run: run["prefill_ms"], 0),
    Column("decode tok/s", lambda run: run["decode_tokens_per_second"], 1, max),
    PRIVATE,
    RESIDENT,
    Column("peak MB", lambda run: run["peak_rss_bytes"] / MEGABYTE, 0),
)


SCHEME_COLUMNS = COLUMNS[:-1]
SPEECH_COLUMNS = (
    FILES,
    LOAD,
    Column("transcription s", lambda run: run["transcription_seconds"], 2),
    PRIVATE,
    RESIDENT,
)
ACCURACY_HEADINGS = ("perplexity +%", "KL nats", "top-1 %")


def render(report: Report) -> str:
    """The tables of `peers.py` and what is needed to read them, as Markdown."""
    runs, same_tokens = report["runs"], report["same_tokens"]
    same = {name: [f"{count} of {report['new_tokens']}"] for name, count in same_tokens.items()}
    parts = [_introduction(report), _values(runs, COLUMNS, ["same tokens"], same)]
    ratios = _ratios({name: runs[name] for name in runs if runs[name]})
    if ratios:
        parts += [
            "Divided by edgetie's row of the same precision. Less is better for all but decode.",
            ratios,
        ]
    return _joined(parts, report)


def render_schemes(report: Report) -> str:
    """The table of `schemes.py` and what is needed to read it, as Markdown."""
    accuracy, copies = report["accuracy"], report["copies"]
    headings = [*ACCURACY_HEADINGS, "copies"]
    more = {
        name: [*_accuracy(name, accuracy), str(copies.get(name, "–"))] for name in report["runs"]
    }
    parts = [_introduction(report), _values(report["runs"], SCHEME_COLUMNS, headings, more)]
    for name, found in accuracy.items():
        if ROWS[name].reference == name:
            parts.append(
                f"Accuracy on {found['windows']} windows of {report['window']} tokens, ± one"
                f" standard error; perplexity of the reference, {' '.join(_title(name))}:"
                f" {found['perplexity']:.3f}."
            )
    return _joined(parts, report)


def render_speech(report: Report, headings: list[str]) -> str:
    """The table of `speech.py` and what is needed to read it, as Markdown."""
    runs, errors = report["runs"], report["errors"]
    more = {
        name: [str(found.get(heading, "–")) for heading in headings]
        for name, found in errors.items()
    }
    seconds = max((run["audio_seconds"] for found in runs.values() for run in found), default=0)
    introduction = (
        f"Whisper tiny.en, {seconds:.1f} s of speech, {report['words']} words;"
        f" {report['rounds']} interleaved rounds; median (best). {report['origin']}."
    )
    return _joined([introduction, _values(runs, SPEECH_COLUMNS, headings, more)], report)


def _introduction(report: Report) -> str:
    return (
        f"{SOURCE_TITLE}, prompt of {report['prompt_tokens']} tokens, {report['new_tokens']}"
        f" greedy tokens, {report['rounds']} interleaved rounds; median (best)."
        f" {report['origin']}."
    )


def _joined(parts: list[str], report: Report) -> str:
    """The whole text: what every report ends with comes last."""
    if report["failures"]:
        parts.append(_bullets("What could not be done", report["failures"]))
    parts.append(_bullets("Versions", report["versions"]))
    return "\n\n".join(parts) + "\n"


def _values(
    runs: dict[str, list[Run]],
    columns: Sequence[Column],
    headings: list[str],
    more: dict[str, list[str]],
) -> str:
    """The measured columns, and behind them more cells of each row, where it has some."""
    rows = []
    for name, row_runs in runs.items():
        if row_runs:
            cells = [column.cell(row_runs) for column in columns]
            cells += more.get(name, ["–"] * len(headings))
        else:
            cells = ["not measured, see below"] + ["–"] * (len(columns) + len(headings) - 1)
        rows.append([*_title(name), *cells])
    return _table(["peer", "", *(column.heading for column in columns), *headings], rows)


def _accuracy(name: str, accuracy: dict[str, Any]) -> list[str]:
    found = accuracy.get(name)
    if found is None:
        return ["–"] * len(ACCURACY_HEADINGS)
    if ROWS[name].reference == name:
        return ["reference"] + ["–"] * (len(ACCURACY_HEADINGS) - 1)
    increase, increase_error, top1, top1_error = (
        100 * found[key]
        for key in (
            "perplexity_increase",
            "perplexity_increase_error",
            "top1_agreement",
            "top1_agreement_error",
        )
    )
    return [
        f"{increase:+.2f} ± {increase_error:.2f}",
        f"{found['kl_divergence']:.5f}",
        f"{top1:.2f} ± {top1_error:.2f}",
    ]


def _ratios(runs: dict[str, list[Run]]) -> str:
    rows = []
    for name, peer_runs in runs.items():
        own = runs.get(OWN_PEERS[ROWS[name].precision])
        if own and own is not peer_runs:
            rows.append([*_title(name), *(column.ratio(peer_runs, own) for column in COLUMNS)])
    headings = ["peer", "", *(column.heading.rsplit(" ", 1)[0] for column in COLUMNS)]
    return _table(headings, rows) if rows else ""


def _title(name: str) -> list[str]:
    peer = ROWS[name]
    return [peer.label, peer.precision]


def _table(headings: list[str], rows: list[list[str]]) -> str:
    rule = ["---"] * 2 + ["---:"] * (len(headings) - 2)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [headings, rule, *rows])


def _bullets(title: str, items: dict[str, str]) -> str:
    lines = (f"- {' '.join(_title(name))}: {text}" for name, text in items.items())
    return f"{title}:\n\n" + "\n".join(lines)
