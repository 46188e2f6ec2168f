"""Repair files that other tools left with a shared weight stored apart, and print the table."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import catalogue
import click
from session import default_work, origin, write_table
from workshop import UnavailableError, Workshop


def repair(edgetie: Path, files: list[Path], scratch: Path) -> tuple[dict[str, object], float, int]:
    """Run ``edgetie tie``: its report, seconds of the whole command, peak bytes of any process."""
    output = scratch / ("tied" if len(files) > 1 else "tied.onnx")
    command = [str(edgetie), "tie", *map(str, files), "--output", str(output), "--json"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    answer, said = process.stdout.read(), process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        reason = (said.strip().splitlines() or [""])[-1]
        raise UnavailableError(f"exit status {os.waitstatus_to_exitcode(status)}: {reason}")
    return json.loads(answer), seconds, usage.ru_maxrss * 1024


@click.command(help=__doc__)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    default=default_work,
    show_default="a folder in the user's cache directory",
    help="Where environments and models are made and kept.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the table to this Markdown file as well, between the script's marks if any.",
)
def main(work: Path, output: Path | None) -> None:
    workshop = Workshop(work.resolve(), lambda what: click.echo(f"making {what}", err=True))
    edgetie = workshop.environment("edgetie") / "edgetie"
    lines = [
        f"{origin(os.cpu_count() or 1)}.",
        "",
        "| file | before MB | after MB | outputs | s | peak MB |",
        "| --- | ---: | ---: | --- | ---: | ---: |",
    ]
    for name, title in catalogue.BROKEN.items():
        try:
            files = sorted(workshop.model(name).glob("*.onnx"))
            with tempfile.TemporaryDirectory(dir=work) as scratch:
                report, seconds, peak = repair(edgetie, files, Path(scratch))
        except UnavailableError as error:
            lines.append(f"| {title} | | | not measured: {error} | | |")
            continue
        before, after = (float(str(report[f"bytes_{when}"])) / 1e6 for when in ("before", "after"))
        outputs = report["outputs"]
        assert isinstance(outputs, list)
        same = all(output["identical"] for output in outputs)
        worst = max(output["relative_error"] for output in outputs)
        text = "equal bit for bit" if same else f"within {worst:.0e} of the largest"
        sizes = f"{before:,.1f} | {after:,.1f}"
        lines.append(f"| {title} | {sizes} | {text} | {seconds:.1f} | {peak / 1e6:,.0f} |")
    markdown = "\n".join(lines) + "\n"
    click.echo(markdown, nl=False)
    if output:
        write_table(output, markdown)


if __name__ == "__main__":
    main()
