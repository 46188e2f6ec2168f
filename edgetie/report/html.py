"""A latency report as one self-contained page of HTML, pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from edgetie.bundle.atomic import atomic_files
from edgetie.harness.environment import environment_line
from edgetie.providers.placement import describe_fallback
from edgetie.report.plots import plot_latency, plot_sweep
from edgetie.report.tables import (
    Table,
    accuracy_table,
    models_of,
    resource_table,
    short_name,
    speed_table,
    titles,
    verdict,
)

if TYPE_CHECKING:
    from edgetie.harness.accuracy.check import AccuracyReport
    from edgetie.harness.latency.bench import LatencyReport

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 75rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p { color: #52606d; } img { width: 100%; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.8rem; border-bottom: 1px solid #e3e7eb; text-align: left;
  white-space: nowrap; }
th { background: #f5f7fa; } .right { text-align: right; font-variant-numeric: tabular-nums; }
"""


def write_html(report: LatencyReport, accuracy: Sequence[AccuracyReport], path: Path) -> None:
    """Write a report, and the accuracy measured along with it, into ``path``.

    Raises:
        EdgetieError: if matplotlib is not installed.
        BundleError: if the file cannot be written.
    """
    parts = [
        f"<h1>{escape(short_name(report.model))}</h1>",
        f"<p>{escape(_protocol(report))}</p>",
        f"<p>{escape(environment_line(report.environment))}</p>",
        *(f"<p>{escape(line)}</p>" for line in _remarks(report)),
        "<h2>Latency, memory, size</h2>",
        _picture(report, "plot"),
        _table(resource_table(report)),
        "<h2>Tokens per second</h2>",
        *([_picture(report, "sweep")] if report.sweep else []),
        _table(speed_table(report)),
    ]
    if accuracy:
        parts += [
            f"<h2>Accuracy against {escape(short_name(accuracy[0].reference))}</h2>",
            f"<p>on {escape(accuracy[0].data)}; {escape(verdict(*accuracy))}</p>",
            _table(accuracy_table(*accuracy)),
        ]
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{escape(short_name(report.model))}: edgetie bench</title>"
        f"<style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )
    path = path.resolve()
    with atomic_files(path, force=True) as folder:
        (folder / path.name).write_text(page, encoding="utf-8")


def _protocol(report: LatencyReport) -> str:
    return (
        f"{report.repeat} runs in separate processes, in turn; a warm-up does not count. Prompt of "
        f"{report.prompt_tokens} tokens, {report.new_tokens} new ones, batch {report.batch}, "
        f"{report.threads} threads. Medians; memory over what a process has after imports."
    )


def _remarks(report: LatencyReport) -> list[str]:
    lines = []
    models = models_of(report)
    for name, each in zip(titles(models), models, strict=True):
        if each.fallback_nodes:
            rest = describe_fallback(each.nodes_per_provider, each.fallback_nodes)
            lines.append(f"{name}: {each.provider} leaves {rest}.")
        if each.latency_problem:
            lines.append(f"{name}: no times, {each.latency_problem}.")
    return lines


def _picture(report: LatencyReport, kind: str) -> str:
    picture = BytesIO()
    (plot_sweep if kind == "sweep" else plot_latency)(report, picture)
    data = base64.b64encode(picture.getvalue()).decode("ascii")
    return f"<img alt='{kind}' src='data:image/png;base64,{data}'>"


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        sides = (" class=right" if name.startswith(">") else "" for name in table.columns)
        inner = (
            f"<{tag}{side}>{escape(cell)}</{tag}>" for cell, side in zip(cells, sides, strict=True)
        )
        return f"<tr>{''.join(inner)}</tr>"

    head = row([name.removeprefix(">") for name in table.columns], "th")
    return (
        f"<div class=scroll><table>{head}{''.join(row(r, 'td') for r in table.rows)}</table></div>"
    )
