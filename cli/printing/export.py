"""Print the report of an export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgetie.report.tables import plain_console, plain_table, print_drawn
from edgetie.ties.groups import TieGroup

if TYPE_CHECKING:
    from rich.table import Table

    from edgetie.export.exporter import ExportReport


def describe_uses(group: TieGroup) -> str:
    """Describe the uses of a weight, equal ones counted, with ``ᵀ`` if it is read transposed."""
    counts = Counter(
        f"{use.op_type}[{use.input}]{'ᵀ' if use.transposed else ''}" for use in group.uses
    )
    return ", ".join(f"{count} × {use}" if count > 1 else use for use, count in counts.items())


def ties_table(ties: Sequence[TieGroup]) -> Table:
    """Tabulate tied weights."""
    table = plain_table("tied weight", "shape", "size", "uses")
    for group in ties:
        name = " = ".join(group.parameters) or group.name
        size = f"{group.bytes / 1e6:.1f} MB {group.dtype}"
        table.add_row(name, "×".join(map(str, group.shape)), size, describe_uses(group))
    return table


def print_export(report: ExportReport) -> None:
    """Print ties, sizes, fusions, the logit error and the time of each stage."""
    console = plain_console()
    manifest = report.manifest
    if manifest.ties:
        print_drawn(console, ties_table(manifest.ties))
    else:
        console.print("no tied weights: every initializer has one use", style="yellow")
    ratio = report.weights_bytes / report.unique_parameter_bytes
    console.print(
        f"\nweights      {report.weights_bytes / 1e6:,.1f} MB on disk, "
        f"{ratio:.3f} × the {manifest.unique_parameters / 1e6:,.1f} M unique parameters"
    )
    types = manifest.quantization.get("types", {})
    if types:
        kept = ", ".join(f"{count} {name}" for name, count in types.items())
        console.print(f"kept         quantized as they are: {kept}")
    unused = manifest.source["unused"]
    if unused:
        some = ", ".join(unused[:3]) + (", …" if len(unused) > 3 else "")
        console.print(f"not used     {len(unused)} weights of its files: {some}", style="yellow")
    operators = manifest.fusion["operators"]
    console.print("fused        " + ", ".join(f"{k} {v}" for k, v in operators.items()))
    for text in manifest.fusion["unfused"]:
        console.print(f"not fused    {text}", style="yellow")
    agreement = report.agreement
    console.print(
        f"logit error  {agreement.relative:.1e} of the largest logit against torch "
        f"(prefill {agreement.prefill:.1e}, cached {agreement.cached:.1e}, "
        f"padded {agreement.padded:.1e})"
    )
    for name, adapter in manifest.adapters.items():
        console.print(
            f"adapter      {name}: rank {adapter['rank']} in {adapter['layers']} layers, "
            f"logit error {adapter['logit_error']:.1e}"
        )
    total = sum(report.seconds.values())
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.seconds.items())
    console.print(f"time         {total:.1f} s ({spent}), peak {report.peak_bytes / 1e6:,.0f} MB")
    console.print(f"bundle       {report.bundle.directory}")
