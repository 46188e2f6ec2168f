"""Print what ``edgetie tie`` did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetie.report.tables import plain_console, print_drawn

from .export import ties_table

if TYPE_CHECKING:
    from rich.console import Console

    from edgetie.passes.merge_near_duplicates import NearCopy
    from edgetie.repair import RepairReport

_SHOWN = 8  # lines of each kind


def print_repair(report: RepairReport) -> None:
    """Print ties, what was merged, what was not and why, sizes, and how the outputs compare."""
    console = plain_console()
    if report.ties:
        print_drawn(console, ties_table(report.ties))
    _print_some(console, [f"merged       {a} into {b}" for a, b in report.merged.items()])
    shared = [f"shared       {a} has the bytes of {b}" for a, b in report.shared.items()]
    _print_some(console, shared)
    for copy in report.near:
        print_near(console, copy, merged=copy.name in report.merged_near)
    for text in report.skipped:
        console.print(f"left alone   {text}")
    if not (report.merged or report.shared or report.near):
        console.print("no weight is stored twice")
    before, after = report.bytes_before, report.bytes_after
    console.print(f"files        {before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB after")
    for outputs in report.outputs:
        if outputs.reason is not None:
            text = f"not compared: {outputs.reason}"
        elif outputs.identical:
            text = "equal bit for bit"
        else:
            error, relative = outputs.max_abs_error, outputs.relative_error
            text = f"differ by {error:.1e}, {relative:.1e} of the largest"
        console.print(f"outputs      {text}")
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.seconds.items())
    console.print(f"time         {sum(report.seconds.values()):.1f} s ({spent})")
    if report.no_bundle is not None:
        note = f"{report.no_bundle}; other commands take its files one by one"
        console.print(f"no bundle    {note}", markup=False)
    if report.task is None:
        console.print(f"file         {report.path}")
    else:
        console.print(f"bundle       {report.path} ({report.task})")


def print_near(console: Console, copy: NearCopy, *, merged: bool) -> None:
    """Print how near a copy is to a table, and whether it was merged."""
    note = "merged" if merged else "not merged; --max-distance merges it"
    console.print(f"near         {copy.describe()} ({note})", markup=False)


def _print_some(console: Console, lines: list[str]) -> None:
    for line in lines[:_SHOWN]:
        console.print(line)
    if len(lines) > _SHOWN:
        console.print(f"             and {len(lines) - _SHOWN} more; --json lists them")
