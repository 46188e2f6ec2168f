"""What ``edgetie tie`` did, as a few lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from edgetie.report.export_table import ties_table

if TYPE_CHECKING:
    from edgetie.repair import RepairReport


def print_repair(report: RepairReport) -> None:
    """Print ties, what was merged, what was not and why, sizes, and how the outputs compare."""
    console = Console(highlight=False, soft_wrap=True)
    if report.ties:
        console.print(ties_table(report.ties))
    for name, kept in report.merged.items():
        console.print(f"merged       {name} into {kept}", markup=False)
    for name, kept in report.shared.items():
        console.print(f"shared       {name} has the bytes of {kept}", markup=False)
    for copy in report.near:
        done = "merged" if copy.name in report.merged_near else "kept; --max-distance merges it"
        form = " transposed" if copy.transposed else ""
        console.print(
            f"near         {copy.name} is {copy.table}{form} but for {copy.distance:.2%} ({done})",
            markup=False,
        )
    for text in report.skipped:
        console.print(f"not merged   {text}", markup=False)
    if not (report.merged or report.shared or report.merged_near):
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
        console.print(f"outputs      {text}", markup=False)
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.seconds.items())
    console.print(f"time         {sum(report.seconds.values()):.1f} s ({spent})")
    console.print(f"file         {report.path}", markup=False)
