"""Time edgetie's kernels against what this machine reads and multiplies per second.

Compiles `kernels.c` and the library's sources with the system's C compiler ($CC). Matrices have
the shapes of SmolLM2-135M and are read in turn from 256 MB, so that no cache holds them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import click
from session import origin, write_table

HERE = Path(__file__).parent
SOURCES = HERE.parent / "edgetie" / "kernels" / "src"


def measure(threads: int) -> list[dict[str, Any]]:
    """Compile the program and run it; the first row is the machine's."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        raise click.ClickException("no C compiler: install one, or set CC")
    files = [HERE / "kernels.c", SOURCES / "cpu.c", *sorted(SOURCES.glob("set_*.c"))]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "kernels"
        command = [*compiler.split(), "-std=gnu11", "-O3", "-march=native", f"-I{SOURCES}"]
        command += [*map(str, files), "-lm", "-lpthread", "-o", str(program)]
        subprocess.run(command, check=True)
        output = subprocess.run(
            [program, str(threads)], check=True, capture_output=True, text=True
        ).stdout
    return [json.loads(line) for line in output.splitlines()]


def to_markdown(rows: list[dict[str, Any]], threads: int) -> str:
    """A table of products, each against the machine in the same run."""
    machine, *products = rows
    peak = machine["gigamultiplications"]
    reads = machine["gigabytes_per_second"]
    lines = [
        f"Kernels for {products[0]['set']}; the machine reads {reads:.1f} GB/s and computes "
        f"{peak:.0f} billion float multiply-adds per second. {origin(threads)}.",
        "",
        "| bits | matrix | tokens | µs | GB/s | ÷ machine | 10⁹ products/s | ÷ machine |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['bits']} | {row['rows']} × {row['columns']} | {row['tokens']} "
        f"| {row['microseconds']:.0f} | {row['gigabytes_per_second']:.1f} "
        f"| {row['of_bandwidth']:.2f} | {row['gigamultiplications']:.1f} "
        f"| {row['gigamultiplications'] / peak:.2f} |"
        for row in products
    ]
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option("--threads", default=os.cpu_count() or 1, show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path))
def main(threads: int, output: Path | None) -> None:
    """Print the table, or write it between the marks of a page."""
    markdown = to_markdown(measure(threads), threads)
    if output is None:
        click.echo(markdown)
    else:
        write_table(output, markdown)


if __name__ == "__main__":
    main()
