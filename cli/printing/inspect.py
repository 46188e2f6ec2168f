"""What an inspection found, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from edgetie.harness.ties.tie_memory import MIN_BYTES
from edgetie.report.tables import plain_console

from .export import uses_in_words

if TYPE_CHECKING:
    from edgetie.harness.ties.inspect import Inspection


def print_inspection(found: Inspection) -> None:
    """Print tied weights and their copies, the largest tensors, operators and providers."""
    console = plain_console()
    if found.ties:
        table = Table(
            "tied weight", "size", "uses", "in the file", "optimized", "in memory",
            box=None, header_style="bold",
        )  # fmt: skip
        for proof in found.ties:
            group = proof.group
            uses = uses_in_words(group)
            size = f"{'×'.join(map(str, group.shape))} {group.dtype} {group.bytes / 1e6:.1f} MB"
            unknown = "too small" if group.bytes < MIN_BYTES else "not measured"
            memory = Text(unknown) if proof.memory is None else _count(proof.memory)
            if proof.resident is not None:
                private, mapped = proof.resident.anonymous, proof.resident.file_mapped
                memory += f" ({private / 1e6:.0f} private + {mapped / 1e6:.0f} file MB)"
            table.add_row(
                group.name, size, uses, _count(proof.file), _count(proof.optimized), memory
            )
        console.print(table)
        for proof in found.ties:
            for text in proof.made_by:
                console.print(f"  {proof.group.name}: {text}")
    elif not found.copies:
        console.print("no tied weights: every initializer has one use", style="yellow")
    for names in found.copies:
        twins = " = ".join(names)
        console.print(
            f"{twins}: stored {len(names)} times; edgetie tie makes them one", style="red"
        )
    console.print()
    largest = Table("largest tensors", "dtype", "shape", "MB", box=None, header_style="bold")
    for name, dtype, shape, count in found.tensors[:5]:
        largest.add_row(name, dtype, "×".join(map(str, shape)), f"{count / 1e6:.1f}")
    console.print(largest)
    operators = ", ".join(f"{name} {count}" for name, count in found.operators.items())
    console.print(f"\noperators    {operators}")
    console.print(f"weights      {found.weight_bytes / 1e6:,.1f} MB")
    placed = ", ".join(f"{name} {count}" for name, count in found.nodes_per_provider.items())
    console.print(f"providers    {placed}")


def _count(copies: int) -> Text:
    return Text(str(copies), style="green" if copies == 1 else "red")
