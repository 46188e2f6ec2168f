"""Reports as tables that people read: for a terminal, or as Markdown to paste."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

    from edgetie.harness.accuracy.check import AccuracyReport
    from edgetie.harness.latency.bench import LatencyReport

MISSING = "–"
_WIDE = 10_000

_TIMES = {
    "load_seconds",
    "first_run_ms",
    "encode_ms",
    "prefill_ms",
    "decode_tokens_per_second",
}
"""Fields that say nothing where hardware is emulated."""


@dataclass
class Table:
    """Cells of text under named columns; a column whose name starts with ``>`` is right-aligned."""

    columns: list[str]
    rows: list[list[str]]

    def rich(self) -> RichTable:
        """For a terminal; print it with a ``rich.console.Console``."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in self.columns:
            name = Text(column.removeprefix(">"))
            table.add_column(name, justify="right" if column.startswith(">") else "left")
        for row in self.rows:
            table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
        return table

    def markdown(self) -> str:
        """The same as a Markdown table, its source aligned too."""
        names = [column.removeprefix(">") for column in self.columns]
        right = [column.startswith(">") for column in self.columns]
        cells = [[cell.replace("|", "\\|") for cell in row] for row in (names, *self.rows)]
        widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]

        def line(row: list[str]) -> str:
            padded = (
                cell.rjust(width) if is_right else cell.ljust(width)
                for cell, width, is_right in zip(row, widths, right, strict=True)
            )
            return f"| {' | '.join(padded)} |"

        rule = [
            "-" * (width - 1) + (":" if is_right else "-")
            for width, is_right in zip(widths, right, strict=True)
        ]
        return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def plain_console() -> Console:
    """Prints text as it is, names with brackets too; where there is no terminal, as wide as need be
    for what others read.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False)
    if not console.is_terminal:
        console.width = _WIDE
    return console


def print_tables(*tables: Table) -> None:
    """Print on stdout: drawn where that is a terminal, as Markdown where it is a pipe or file."""
    console = plain_console()
    for table in tables:
        if console.is_terminal:
            console.print(table.rich())
        else:
            print(f"\n{table.markdown()}")


_STYLES = {"ok": "green", "FAIL": "bold red"}


def accuracy_table(*reports: AccuracyReport) -> Table:
    """One line a metric: its value on each provider, its limit and whether all keep it."""
    metrics: list[tuple[str, str, Callable[[AccuracyReport], str], str, str]] = [
        ("max_abs_error", "largest logit error", lambda r: _scientific(r.max_abs_error), "", ""),
        ("", "mean logit error", lambda r: _scientific(r.mean_abs_error), "", ""),
        (
            "relative_error",
            "largest error / largest logit",
            lambda r: _scientific(r.relative_error),
            "≤",
            _limits(reports, "max_relative_error", _scientific),
        ),
        (
            "mean_kl_divergence",
            "KL divergence, nats a token",
            lambda r: _scientific(r.mean_kl_divergence),
            "≤",
            _limits(reports, "max_kl", _scientific),
        ),
        (
            "top1_agreement",
            "top-1 agreement",
            lambda r: _with_error(r.top1_agreement, r.top1_agreement_error),
            "≥",
            _limits(reports, "min_top1", _percent),
        ),
        ("", "greedy agreement", lambda r: _percent(r.greedy_agreement), "", ""),
        ("", "perplexity", lambda r: f"{r.perplexity:.6g}", "", ""),
        ("", "perplexity, reference", lambda r: f"{r.reference_perplexity:.6g}", "", ""),
        (
            "perplexity_increase",
            "perplexity increase",
            lambda r: _with_error(r.perplexity_increase, r.perplexity_increase_error),
            "≤",
            _limits(reports, "max_perplexity_increase", _percent),
        ),
    ]
    rows = []
    for field, name, value, sign, limit in metrics:
        failed = any(field in report.failures for report in reports)
        state = "FAIL" if failed else "ok" if limit else ""
        cells = [value(report) for report in reports]
        rows.append([name, *cells, f"{sign} {limit}" if limit else "", state])
    if len(reports) > 1:
        rows.append(["nodes", *(_nodes(report.nodes_per_provider) for report in reports), "", ""])
    names = [report.provider for report in reports] if len(reports) > 1 else ["value"]
    return Table(["metric", *(f">{name}" for name in names), ">limit", ""], rows)


def _with_error(value: float, error: float) -> str:
    return _percent(value) if math.isnan(error) else f"{_percent(value)} ± {_percent(error)}"


def _nodes(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {name.removesuffix('ExecutionProvider')}" for name, n in counts.items())


def _limits(reports: Sequence[AccuracyReport], name: str, form: Callable[[float], str]) -> str:
    """A limit, or those of each provider where they differ."""
    found = [getattr(report.thresholds, name) for report in reports]
    words = ["none" if limit is None else form(limit) for limit in found]
    if all(limit is None for limit in found):
        return ""
    return words[0] if len(set(words)) == 1 else ", ".join(words)


def speed_table(report: LatencyReport) -> Table:
    """Prefill (``pp``) and decode (``tg``) tokens per second: median ± deviation over the runs."""
    rows = []
    models = models_of(report)
    names = _short_names(models)
    for each in (point for model in models for point in (model, *model.sweep)):
        name = names[each.model]
        rows_of = f" × {each.batch}" if each.batch > 1 else ""
        for test, field in (
            (f"pp{each.prompt_tokens}{rows_of}", "prefill_tokens_per_second"),
            (f"tg{each.new_tokens}{rows_of}", "decode_tokens_per_second"),
        ):
            speed = f"{getattr(each, field):.1f} ± {each.deviation[field]:.1f}"
            rows.append(
                [
                    name if each.precision in name else f"{name} {each.precision}",
                    _bytes(each.file_bytes),
                    MISSING if each.parameters is None else f"{each.parameters / 1e6:.1f} M",
                    each.provider,
                    str(each.threads),
                    test,
                    speed if each.latency_valid else "not measured",
                ]
            )
    return Table(["model", ">size", ">params", "provider", ">threads", "test", ">t/s"], rows)


def resource_table(report: LatencyReport) -> Table:
    """Load time, latencies, memory and ties: a column for each model, and their ratio."""
    models = models_of(report)
    columns = ["", *(f">{name}" for name in titles(models))]

    def row(label: str, name: str, form: Callable[[float], str]) -> list[str]:
        cells = [form(getattr(each, name)) for each in models]
        if name in _TIMES:
            cells = [c if m.latency_valid else MISSING for c, m in zip(cells, models, strict=True)]
        if report.against is not None:
            cells.append(f"{report.ratios[name]:.2f}" if name in report.ratios else MISSING)
        return [label, *cells]

    encodes = any(each.encode_ms is not None for each in models)
    rows = [
        row("load", "load_seconds", "{:.2f} s".format),
        row("first run", "first_run_ms", "{:.0f} ms".format),
        *([row("encode", "encode_ms", _milliseconds)] if encodes else []),
        row("prefill (TTFT)", "prefill_ms", "{:.0f} ms".format),
        row("decode, tokens/s", "decode_tokens_per_second", "{:.1f}".format),
    ]
    filler = [""] if report.against is not None else []
    rows.append(["its median lies in", *(_interval(each) for each in models), *filler])
    for name in ("p50", "p90", "p99"):
        cells = [
            f"{each.latency_ms[name]:.1f} ms" if each.latency_valid else MISSING for each in models
        ]
        rows.append([f"token latency {name}", *cells, *filler])
    rows += [
        row("memory, anonymous", "anonymous_bytes", _bytes),
        row("memory, file-mapped", "file_mapped_bytes", _bytes),
        row("memory, resident", "rss_bytes", _bytes),
        row("memory, peak", "peak_rss_bytes", _bytes),
        row("files", "file_bytes", _bytes),
    ]
    nodes = [_nodes(each.nodes_per_provider) for each in models]
    rows.append(["nodes", *nodes, *filler])
    ties = {True: "intact", False: "BROKEN", None: "none"}
    rows.append(["ties", *(ties[each.ties.intact] for each in models), *filler])
    copies = [MISSING if m.copies_in_memory is None else str(m.copies_in_memory) for m in models]
    rows.append(["copies in memory", *copies, *filler])
    if report.against is not None:
        columns.append(">ratio")
    return Table(columns, rows)


def models_of(report: LatencyReport) -> list[LatencyReport]:
    """The model measured, on each provider, and the other one it was measured against."""
    mine = [report, *report.others]
    return mine if report.against is None else [*mine, report.against, *report.against.others]


def titles(models: list[LatencyReport]) -> list[str]:
    """Names of models that tell them apart: with the provider, where there are several."""
    several = len({each.provider for each in models}) > 1
    shorts = _short_names(models)
    return [
        f"{shorts[each.model]} {each.provider}" if several else shorts[each.model]
        for each in models
    ]


def _short_names(models: list[LatencyReport]) -> dict[str, str]:
    """By path; the paths themselves where the last parts are alike."""
    shorts = {each.model: short_name(each.model) for each in models}
    return shorts if len(set(shorts.values())) == len(shorts) else {path: path for path in shorts}


def _interval(report: LatencyReport) -> str:
    """Where the median of the decode speed lies, and how surely."""
    found = report.confidence["decode_tokens_per_second"]
    if not report.latency_valid or not found.level:
        return MISSING
    return f"{found.low:.1f}–{found.high:.1f} ({found.level:.0%})"


def short_name(path: str) -> str:
    """The last part of a path; of ``x/model.onnx``, which says little, the last two."""
    where = Path(path)
    return "/".join(where.parts[-2:]) if where.suffix == ".onnx" else where.name or path


def _bytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if abs(size) >= 1e9 else f"{size / 1e6:.1f} MB"


def _milliseconds(value: float | None) -> str:
    return MISSING if value is None else f"{value:.0f} ms"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value * 100:.2f} %"


def _scientific(value: float) -> str:
    return f"{value:.2e}"
