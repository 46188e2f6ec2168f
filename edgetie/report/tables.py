"""Reports as tables for people: drawn for a terminal, or Markdown to paste."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgetie.providers.placement import describe_fallback, describe_placement
from edgetie.providers.registry import OWN

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod, RenderableType
    from rich.table import Table as RichTable

    from edgetie.harness.accuracy.check import AccuracyReport
    from edgetie.harness.latency.bench import LatencyReport

MISSING = "–"
_WIDE = 10_000
_STYLES = {"ok": "green", "FAIL": "bold red"}
_METRICS = (  # field of an AccuracyReport, name, format, limit
    ("encoder_similarity", "encoder: cosine similarity of embeddings", "{:.6f}", ""),
    ("encoder_error", "encoder: relative error of embeddings", "{:.2e}", ""),
    ("max_abs_error", "largest logit error", "{:.2e}", ""),
    ("mean_abs_error", "mean logit error", "{:.2e}", ""),
    ("relative_error", "largest error / largest logit", "{:.2e}", "max_relative_error"),
    ("mean_kl_divergence", "KL divergence, nats a token", "{:.2e}", "max_kl"),
    ("top1_agreement", "top-1 agreement", "{:.2%}", "min_top1"),
    ("greedy_agreement", "greedy agreement (equal tokens of free-running answers)", "{:.2%}", ""),
    ("perplexity", "perplexity", "{:.6g}", ""),
    ("reference_perplexity", "perplexity, reference", "{:.6g}", ""),
    ("perplexity_increase", "perplexity increase", "{:.2%}", "max_perplexity_increase"),
)


@dataclass
class Table:
    """Cells of text under named columns; a column whose name starts with ``>`` is right-aligned."""

    columns: list[str]
    rows: list[list[str]]

    @property
    def names(self) -> list[str]:
        """Names of the columns, without the ``>``."""
        return [column.removeprefix(">") for column in self.columns]

    def rich(self) -> RichTable:
        """Convert to a table for a ``rich.console.Console``. Cells wrap, and none is cut."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for column, name in zip(self.columns, self.names, strict=True):
            justify: JustifyMethod = "right" if column.startswith(">") else "left"
            table.add_column(Text(name), justify=justify, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
        return table

    def markdown(self) -> str:
        """Convert to Markdown whose source is aligned, too."""
        lines = []
        for column, *cells in zip(self.columns, self.names, *self.rows, strict=True):
            cells = [cell.replace("|", "\\|") for cell in cells]
            width, is_right = max(3, *map(len, cells)), column.startswith(">")
            head, *rest = (cell.rjust(width) if is_right else cell.ljust(width) for cell in cells)
            lines.append([head, "-" * (width - 1) + (":" if is_right else "-"), *rest])
        return "\n".join(f"| {' | '.join(line)} |" for line in zip(*lines, strict=True))


def plain_console() -> Console:
    """Return a console that prints text as it is, also names with brackets.

    Without a terminal its lines are as long as the text, for programs that read them.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False)
    if not console.is_terminal:
        console.width = _WIDE
    return console


def plain_table(*columns: str) -> RichTable:
    """Return a table without lines for a ``rich.console.Console``. Cells wrap, and none is cut."""
    from rich.table import Table as RichTable

    table = RichTable(box=None, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_drawn(console: Console, table: RichTable) -> None:
    """Print a table whose columns become narrower between words; a word is cut only if it must."""
    from rich.measure import Measurement

    def measure(value: RenderableType) -> Measurement:
        return Measurement.get(console, console.options.update(width=_WIDE), value)

    sizes = [[measure(each) for each in (c.header, *c.cells)] for c in table.columns]
    widths = [max(size.minimum for size in column) for column in sizes]
    most = [max(size.maximum for size in column) for column in sizes]
    spare = console.width - measure(table).maximum + sum(most) - sum(widths)
    if 0 <= spare < sum(most) - sum(widths):
        for _ in range(spare):
            narrow = [index for index, width in enumerate(widths) if width < most[index]]
            widths[min(narrow, key=widths.__getitem__)] += 1
        for column, width in zip(table.columns, widths, strict=True):
            column.width = width
    console.print(table)


def print_tables(*tables: Table) -> None:
    """Print on stdout: drawn if it is a terminal, as Markdown if it is a pipe or file."""
    console = plain_console()
    for table in tables:
        if console.is_terminal:
            print_drawn(console, table.rich())
        else:
            print(f"\n{table.markdown()}")


def accuracy_table(*reports: AccuracyReport) -> Table:
    """Tabulate one metric a line: its value on each provider, its limit and whether all keep it.

    Metrics that nothing was measured for are left out, as perplexity is if a model reads noise.
    """
    rows = []
    for field, name, pattern, limit_name in _METRICS:
        cells = [_with_error(report, field, pattern) for report in reports]
        limit = _limits(reports, limit_name, pattern) if limit_name else ""
        is_broken = any(field in report.failures for report in reports)
        if not is_broken and all(math.isnan(getattr(report, field)) for report in reports):
            continue
        rows.append([name, *cells, limit, "FAIL" if is_broken else "ok" if limit else ""])
    if len(reports) > 1:
        rows.append(["nodes", *(_nodes(report.nodes_per_provider) for report in reports), "", ""])
    names = [f">{report.provider}" for report in reports] if len(reports) > 1 else [">value"]
    return Table(["metric", *names, ">limit", ""], rows)


def verdict(*reports: AccuracyReport) -> str:
    """Say whether an accuracy check passed or failed, on each provider if there are several."""
    if len(reports) > 1:
        return ", ".join(f"{r.provider}: {'passed' if r.passed else 'failed'}" for r in reports)
    (report,) = reports
    count = len(report.failures)
    broken = f"{count} limit{'s' if count > 1 else ''} broken"
    return "passed: every limit holds" if report.passed else f"failed: {broken}"


def ran_by(*reports: AccuracyReport | LatencyReport) -> str:
    """Name the providers that ran models, with their nodes: ``edgetie (213 of 245 nodes)``."""
    texts = [describe_placement(each.provider, each.nodes_per_provider) for each in reports]
    return ", ".join(dict.fromkeys(texts))


def _with_error(report: AccuracyReport, field: str, pattern: str) -> str:
    """Format a metric, with its standard error if it has one."""
    value, error = getattr(report, field), getattr(report, f"{field}_error", math.nan)
    text = _number(value, pattern)
    return text if math.isnan(error) else f"{text} ± {_number(error, pattern)}"


def _nodes(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {name.removesuffix('ExecutionProvider')}" for name, n in counts.items())


def _limits(reports: Sequence[AccuracyReport], name: str, pattern: str) -> str:
    """Format a limit, or the limits of all providers if they differ."""
    limits = [getattr(report.thresholds, name) for report in reports]
    texts = ["none" if limit is None else _number(limit, pattern) for limit in limits]
    texts = texts[:1] if len(set(texts)) == 1 else texts
    sign = "≥" if name.startswith("min") else "≤"
    return "" if texts == ["none"] else f"{sign} {', '.join(texts)}"


def speed_table(report: LatencyReport) -> Table:
    """Tabulate prefill (``pp``) and decode (``tg``) tokens/s: median ± deviation over the runs."""
    rows = []
    models = models_of(report)
    names = _short_names(models)
    for each in (point for model in models for point in (model, *model.sweep)):
        name = names[each.model]
        batch = f" × {each.batch}" if each.batch > 1 else ""
        cells = [
            name if each.precision in name else f"{name} {each.precision}",
            _bytes(each.file_bytes),
            MISSING if each.parameters is None else f"{each.parameters / 1e6:.1f} M",
            each.provider,
            str(each.threads),
        ]
        for test, field in (
            (f"pp{each.prompt_tokens}{batch}", "prefill_tokens_per_second"),
            (f"tg{each.new_tokens}{batch}", "decode_tokens_per_second"),
        ):
            if getattr(each, field) is None:
                continue
            speed = f"{getattr(each, field):.1f} ± {each.deviation[field]:.1f}"
            rows.append([*cells, test, speed if each.latency_valid else "not measured"])
    return Table(["model", ">size", ">params", "provider", ">threads", "test", ">t/s"], rows)


def resource_table(report: LatencyReport) -> Table:
    """Tabulate load time, latencies, memory and ties: a column for each model, and their ratio."""
    models = models_of(report)
    rows: list[list[str]] = []

    def add(label: str, to_text: Callable[[LatencyReport], str], ratio: str = "") -> None:
        cells = [to_text(model) for model in models]
        if report.against is not None:
            number = report.ratios.get(ratio)
            cells.append(f"{number:.2f}" if number is not None else MISSING if ratio else "")
        rows.append([label, *cells])

    def add_time(label: str, pattern: str, field: str) -> None:
        add(label, lambda model: _time(model, pattern, getattr(model, field)), field)

    def add_size(label: str, field: str) -> None:
        add(label, lambda model: _bytes(getattr(model, field)), field)

    add_time("load", "{:.2f} s", "load_seconds")
    add_time("first run", "{:.0f} ms", "first_run_ms")
    if any(model.encode_ms is not None for model in models):
        add_time("encode", "{:.0f} ms", "encode_ms")
    if report.new_tokens:
        add_time("prefill (TTFT)", "{:.0f} ms", "prefill_ms")
        add_time("decode, tokens/s", "{:.1f}", "decode_tokens_per_second")
        add("its median lies in", _interval)
        if any(model.speculative_tokens_per_second is not None for model in models):
            add_time("decode with proposals", "{:.1f}", "speculative_tokens_per_second")
            add("proposals accepted", _accepted)
        add("token latency p50", lambda m: _time(m, "{:.1f} ms", m.latency_ms.get("p50")))
        add("token latency p90", lambda m: _time(m, "{:.1f} ms", m.latency_ms.get("p90")))
        add("token latency p99", lambda m: _time(m, "{:.1f} ms", m.latency_ms.get("p99")))
    else:
        for index, point in enumerate([report, *report.sweep]):
            batch = f" × {point.batch}" if point.batch > 1 else ""
            label = f"forward pass, {point.prompt_tokens} tokens{batch}"
            add(label, partial(_pass_time, index=index), "" if index else "prefill_ms")
    add_size("memory, anonymous", "anonymous_bytes")
    add_size("memory, file-mapped", "file_mapped_bytes")
    add_size("memory, resident", "rss_bytes")
    add_size("memory, peak", "peak_rss_bytes")
    add_size("files", "file_bytes")
    add("provider", ran_by)
    add("ties", lambda m: {True: "intact", False: "BROKEN", None: "none"}[m.ties.intact])
    add("copies in memory", lambda m: f"{MISSING if (n := m.copies_in_memory) is None else n}")
    ratio = [">ratio"] if report.against is not None else []
    return Table(["", *(f">{name}" for name in titles(models)), *ratio], rows)


def _accepted(report: LatencyReport) -> str:
    """Format the share of proposed tokens that were accepted."""
    return MISSING if report.accepted_share is None else f"{report.accepted_share:.0%}"


def _pass_time(report: LatencyReport, index: int) -> str:
    """Format the time of a forward pass at a point of a sweep."""
    return _time(report, "{:.1f} ms", [report, *report.sweep][index].prefill_ms)


def models_of(report: LatencyReport) -> list[LatencyReport]:
    """List the model measured, on each provider, and the model it was measured against."""
    reports = [report, *report.others]
    return reports if report.against is None else [*reports, *models_of(report.against)]


def remarks(report: LatencyReport) -> list[str]:
    """List nodes that run on other providers, and models whose speeds mean nothing.

    Not those of edgetie's own provider, which leaves nodes to another one by design.
    """
    models, lines = models_of(report), []
    for name, each in zip(titles(models), models, strict=True):
        if each.fallback_nodes and each.provider != OWN:
            rest = describe_fallback(each.nodes_per_provider, each.fallback_nodes)
            lines.append(f"{name}: {each.provider} leaves {rest}")
        if each.latency_problem:
            lines.append(f"{name}: speeds are not valid: {each.latency_problem}")
    return lines


def titles(models: list[LatencyReport]) -> list[str]:
    """Name models so that no two are alike: with the provider, if there are several."""
    several = len({each.provider for each in models}) > 1
    shorts = _short_names(models)
    return [shorts[each.model] + f" {each.provider}" * several for each in models]


def _short_names(models: list[LatencyReport]) -> dict[str, str]:
    """Map each path to its last part, or to itself if two last parts are alike."""
    shorts = {each.model: short_name(each.model) for each in models}
    return shorts if len(set(shorts.values())) == len(shorts) else {path: path for path in shorts}


def _interval(report: LatencyReport) -> str:
    """Format the confidence interval of the decode speed's median, and its level."""
    interval = report.confidence.get("decode_tokens_per_second")
    if interval is None:
        return MISSING
    text = f"{interval.low:.1f}–{interval.high:.1f} ({interval.level:.0%})"
    return text if interval.level and report.latency_valid else MISSING


def short_name(path: str) -> str:
    """Return the last part of a path; of ``x/model.onnx``, which says little, the last two."""
    parts = Path(path)
    return "/".join(parts.parts[-2:]) if parts.suffix == ".onnx" else parts.name or path


def _number(value: float, pattern: str) -> str:
    return MISSING if math.isnan(value) else pattern.format(value).replace("%", " %")


def _bytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if abs(size) >= 1e9 else f"{size / 1e6:.1f} MB"


def _time(report: LatencyReport, pattern: str, value: float | None) -> str:
    return MISSING if value is None or not report.latency_valid else pattern.format(value)
