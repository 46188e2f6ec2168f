"""Print what an inspection found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from edgetie.harness.ties.tie_memory import MIN_BYTES
from edgetie.providers.placement import describe_placement
from edgetie.report.tables import plain_console, plain_table, print_drawn
from edgetie.runtime.adapters import adapter_path

from .export import describe_uses

if TYPE_CHECKING:
    from edgetie.harness.ties.inspect import Inspection


def print_inspection(inspection: Inspection) -> None:
    """Print tied weights and their copies, the largest tensors, operators and providers."""
    console = plain_console()
    if inspection.ties:
        table = plain_table("tied weight", "size", "in the file", "optimized", "in memory")
        for tie in inspection.ties:
            group = tie.group
            size = f"{'×'.join(map(str, group.shape))} {group.dtype} {group.bytes / 1e6:.1f} MB"
            unknown = "too small" if group.bytes < MIN_BYTES else "not measured"
            memory = Text(unknown) if tie.memory is None else _count(tie.memory)
            if tie.resident is not None:
                private, mapped = tie.resident.anonymous, tie.resident.file_mapped
                memory += f" ({private / 1e6:.0f} private + {mapped / 1e6:.0f} file MB)"
            table.add_row(group.name, size, _count(tie.file), _count(tie.optimized), memory)
        print_drawn(console, table)
        for tie in inspection.ties:
            console.print(f"  {tie.group.name}: read by {describe_uses(tie.group)}")
            for text in tie.causes:
                console.print(f"  {tie.group.name}: {text}")
    elif not inspection.copies:
        console.print("no tied weights: every initializer has one use", style="yellow")
    for names in inspection.copies:
        text = f"{' = '.join(names)}: stored {len(names)} times; edgetie tie makes them one"
        console.print(text, style="red")
    console.print()
    largest = plain_table("largest tensors", "dtype", "shape", "MB")
    for name, dtype, shape, count in inspection.tensors[:5]:
        largest.add_row(name, dtype, "×".join(map(str, shape)), f"{count / 1e6:.1f}")
    print_drawn(console, largest)
    operators = ", ".join(f"{name} {count}" for name, count in inspection.operators.items())
    console.print(f"\noperators    {operators}")
    console.print(f"weights      {inspection.weight_bytes / 1e6:,.1f} MB")
    for name, adapter in inspection.bundle.manifest.adapters.items():
        size = inspection.bundle.manifest.files[adapter_path(Path(), name).name]["bytes"]
        console.print(
            f"adapter      {name}: rank {adapter['rank']} in {adapter['layers']} layers, "
            f"{size / 1e6:.1f} MB, of {adapter['base']}"
        )
    placed = describe_placement(inspection.provider, inspection.nodes_per_provider)
    console.print(f"provider     {placed}")


def _count(copies: int) -> Text:
    return Text(str(copies), style="green" if copies == 1 else "red")
