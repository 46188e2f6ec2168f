"""Print the report of ``edgetie prune-vocab``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetie.report.tables import plain_console, plain_table, print_drawn

if TYPE_CHECKING:
    from edgetie.prune.pruner import PruneReport


def print_prune(report: PruneReport) -> None:
    """Print rows, bytes and tokens per word before and after, and how far logits differ."""
    console = plain_console()
    table = plain_table("", "before", "after")
    table.add_row("tokens", f"{report.rows_before:,}", f"{report.rows_after:,}")
    for name, before, after in (
        ("tables", report.table_bytes_before, report.table_bytes_after),
        ("bundle", report.bytes_before, report.bytes_after),
    ):
        table.add_row(name, f"{before / 1e6:,.1f} MB", f"{after / 1e6:,.1f} MB")
    for name, cost in (("kept text", report.text), ("unseen text", report.unseen)):
        if cost is not None:
            ratios = (cost.tokens_per_word_before, cost.tokens_per_word_after)
            table.add_row(f"tokens per word, {name}", *(f"{ratio:.3f}" for ratio in ratios))
    print_drawn(console, table)
    if report.unseen is not None:
        console.print("unseen text is the last tenth, if only the first nine were kept")
    console.print(f"logits       differ by {report.logits_error:.1e} of the largest")
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.seconds.items())
    console.print(f"time         {sum(report.seconds.values()):.1f} s ({spent})")
    console.print(f"bundle       {report.bundle.directory}")
