"""The one table at the end of the quickstart."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.table import Table

from edgetie.report.tables import plain_console

if TYPE_CHECKING:
    from edgetie.harness.latency.bench import LatencyReport
    from edgetie.harness.ties.inspect import Inspection
    from edgetie.quickstart import QuickstartReport


def print_quickstart(report: QuickstartReport) -> None:
    """Print the generated answers, then fp32 beside int8."""
    console = plain_console()
    for question, answer in report.answers:
        console.print(f"\n{question}", style="bold")
        console.print(answer)
    accuracy, latency = report.accuracy, report.latency
    table = Table("", "fp32", "int8", header_style="bold", title_justify="left")
    threads = f", {latency.threads} threads" if latency is not None else ""
    table.title = f"{report.exported.manifest.source['name']}{threads}"
    table.add_row(
        "copies of the embedding (file, optimized, memory)",
        _copies(report.proof_fp32),
        _copies(report.proof_int8),
    )
    sizes = (each.bundle.file_bytes for each in (report.exported, report.quantized))
    table.add_row("files", *(f"{size / 1e6:.1f} MB" for size in sizes))
    if latency is not None and latency.against is not None:
        for row in _speeds(latency.against, latency):
            table.add_row(*row)
    table.add_row(
        "largest logit error against torch",
        f"{report.exported.agreement.relative:.1e}",
        f"{accuracy.relative_error:.1e}",
    )
    table.add_row(
        "perplexity", f"{accuracy.reference_perplexity:.4g}", f"{accuracy.perplexity:.4g}"
    )
    table.add_row(
        "top-1 agreement with fp32",
        "",
        f"{accuracy.top1_agreement:.1%} ± {accuracy.top1_agreement_error:.1%}",
    )
    console.print()
    console.print(table)
    console.print(
        f"bundles: {report.exported.bundle.directory}, {report.quantized.bundle.directory}"
    )


def _speeds(fp32: LatencyReport, int8: LatencyReport) -> list[tuple[str, str, str]]:
    """What was timed, of both."""

    def row(name: str, value: Callable[[LatencyReport], str]) -> tuple[str, str, str]:
        return name, value(fp32), value(int8)

    return [
        row("load", lambda r: f"{r.load_seconds:.2f} s"),
        row(f"prefill {int8.prompt_tokens} tokens", lambda r: f"{r.prefill_ms:.0f} ms"),
        row("decode", lambda r: f"{r.decode_tokens_per_second:.1f} tokens/s"),
        row("memory over imports", lambda r: f"{r.rss_bytes / 1e6:.0f} MB"),
    ]


def _copies(proof: Inspection) -> str:
    if not proof.ties:
        return "not tied"
    tie = proof.ties[0]
    return f"{tie.file}, {tie.optimized}, {tie.memory if tie.memory is not None else '–'}"
