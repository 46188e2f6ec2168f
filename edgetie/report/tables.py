"""Reports as tables that people read: for a terminal, or as Markdown to paste."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from edgetie.harness.accuracy import AccuracyReport
    from edgetie.harness.latency import LatencyReport

MISSING = "–"


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
            table.add_column(
                column.removeprefix(">"), justify="right" if column.startswith(">") else "left"
            )
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


def print_tables(*tables: Table) -> None:
    """Print on stdout: drawn where that is a terminal, as Markdown where it is a pipe or file."""
    from rich.console import Console

    console = Console()
    for table in tables:
        if console.is_terminal:
            console.print(table.rich())
        else:
            print(f"\n{table.markdown()}")


_STYLES = {"ok": "green", "FAIL": "bold red"}


def accuracy_table(report: AccuracyReport) -> Table:
    """One line a metric: its value, its limit and whether it is kept."""
    limits = report.thresholds
    increase = _percent(report.perplexity_increase)
    if not math.isnan(report.perplexity_increase_error):
        increase += f" ± {_percent(report.perplexity_increase_error)}"
    rows = []
    for field, name, value, sign, limit in (
        ("max_abs_error", "largest logit error", _scientific(report.max_abs_error), "", ""),
        ("", "mean logit error", _scientific(report.mean_abs_error), "", ""),
        (
            "relative_error",
            "largest error / largest logit",
            _scientific(report.relative_error),
            "≤",
            _limit(limits.max_relative_error, _scientific),
        ),
        (
            "mean_kl_divergence",
            "KL divergence, nats a token",
            _scientific(report.mean_kl_divergence),
            "≤",
            _limit(limits.max_kl, _scientific),
        ),
        (
            "top1_agreement",
            "top-1 agreement",
            f"{_percent(report.top1_agreement)} ± {_percent(report.top1_agreement_error)}",
            "≥",
            _limit(limits.min_top1, _percent),
        ),
        ("", "greedy agreement", _percent(report.greedy_agreement), "", ""),
        ("", "perplexity", f"{report.perplexity:.6g}", "", ""),
        ("", "perplexity, reference", f"{report.reference_perplexity:.6g}", "", ""),
        (
            "perplexity_increase",
            "perplexity increase",
            increase,
            "≤",
            _limit(limits.max_perplexity_increase, _percent),
        ),
    ):
        state = "FAIL" if field in report.failures else "ok" if limit else ""
        rows.append([name, value, f"{sign} {limit}" if limit else "", state])
    return Table(["metric", ">value", ">limit", ""], rows)


def _limit(limit: float | None, form: Callable[[float], str]) -> str:
    return "" if limit is None else form(limit)


def speed_table(report: LatencyReport) -> Table:
    """Prefill (``pp``) and decode (``tg``) tokens per second: median ± deviation over the runs."""
    rows = []
    for each in models_of(report):
        name = short_name(each.model)
        for test, field in (
            (f"pp{each.prompt_tokens}", "prefill_tokens_per_second"),
            (f"tg{each.new_tokens}", "decode_tokens_per_second"),
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
                    speed if each.latency_valid else f"{speed} (not valid)",
                ]
            )
    return Table(["model", ">size", ">params", "provider", ">threads", "test", ">t/s"], rows)


def resource_table(report: LatencyReport) -> Table:
    """Load time, latencies, memory and ties: a column for each model, and their ratio."""
    models = models_of(report)
    columns = ["", *(f">{short_name(each.model)}" for each in models)]

    def row(label: str, name: str, form: Callable[[float], str]) -> list[str]:
        cells = [form(getattr(each, name)) for each in models]
        if report.against is not None:
            cells.append(f"{report.ratios[name]:.2f}" if name in report.ratios else "")
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
    for name in ("p50", "p90", "p99"):
        cells = [f"{each.latency_ms[name]:.1f} ms" for each in models]
        rows.append([f"token latency {name}", *cells, *filler])
    rows += [
        row("memory, anonymous", "anonymous_bytes", _bytes),
        row("memory, file-mapped", "file_mapped_bytes", _bytes),
        row("memory, resident", "rss_bytes", _bytes),
        row("memory, peak", "peak_rss_bytes", _bytes),
        row("files", "file_bytes", _bytes),
    ]
    nodes = [
        ", ".join(
            f"{count} {name.removesuffix('ExecutionProvider')}"
            for name, count in each.nodes_per_provider.items()
        )
        for each in models
    ]
    rows.append(["nodes", *nodes, *filler])
    ties = {True: "intact", False: "BROKEN", None: "none"}
    rows.append(["ties", *(ties[each.ties.intact] for each in models), *filler])
    if report.against is not None:
        columns.append(">ratio")
    return Table(columns, rows)


def models_of(report: LatencyReport) -> list[LatencyReport]:
    """The model measured and, where there is one, the other it was measured against."""
    return [report] if report.against is None else [report, report.against]


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
