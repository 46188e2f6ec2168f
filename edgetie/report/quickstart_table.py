"""The one table at the end of the quickstart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from edgetie.harness.inspection import Inspection
    from edgetie.quickstart import QuickstartReport


def print_quickstart(report: QuickstartReport) -> None:
    """Print the generated answers, then fp32 beside int8."""
    console = Console(highlight=False, soft_wrap=True)
    for question, answer in report.answers:
        console.print(f"\n[bold]{question}[/bold]\n{answer}")
    int8 = report.latency
    fp32 = int8.against
    assert fp32 is not None
    accuracy = report.accuracy
    table = Table("", "fp32", "int8", header_style="bold", title_justify="left")
    table.title = f"{report.exported.manifest.source['name']}, {int8.threads} threads"
    table.add_row(
        "copies of the embedding (file, optimized, memory)",
        _copies(report.proof_fp32),
        _copies(report.proof_int8),
    )
    table.add_row("files", f"{fp32.file_bytes / 1e6:.1f} MB", f"{int8.file_bytes / 1e6:.1f} MB")
    table.add_row("load", f"{fp32.load_seconds:.2f} s", f"{int8.load_seconds:.2f} s")
    table.add_row(
        f"prefill {int8.prompt_tokens} tokens",
        f"{fp32.prefill_ms:.0f} ms",
        f"{int8.prefill_ms:.0f} ms",
    )
    table.add_row(
        "decode",
        f"{fp32.decode_tokens_per_second:.1f} tokens/s",
        f"{int8.decode_tokens_per_second:.1f} tokens/s",
    )
    table.add_row(
        "memory over imports", f"{fp32.rss_bytes / 1e6:.0f} MB", f"{int8.rss_bytes / 1e6:.0f} MB"
    )
    table.add_row(
        "largest logit error against torch",
        f"{report.exported.agreement.relative:.1e}",
        f"{accuracy.relative_error:.1e}",
    )
    table.add_row(
        "perplexity", f"{accuracy.reference_perplexity:.2f}", f"{accuracy.perplexity:.2f}"
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


def _copies(proof: Inspection) -> str:
    if not proof.ties:
        return "not tied"
    tie = proof.ties[0]
    return f"{tie.file}, {tie.optimized}, {tie.memory if tie.memory is not None else '–'}"
