"""``edgetie bench``: load time, latency, tokens per second and memory."""

from __future__ import annotations

import os
from pathlib import Path

import click

from . import common


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@common.provider_option
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Tokens of the prompt.",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(min=2),
    default=64,
    show_default=True,
    help="Tokens to generate; decode speed counts from the second on.",
)
@common.threads_option
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Runs, each in a process of its own; medians are reported.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="OTHER",
    help="Another bundle, ONNX directory or .onnx file, measured in turn with BUNDLE.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Draw latency, memory over time and a comparison; adds one run that samples memory.",
)
@common.output_options
def command(
    bundle: Path,
    provider: str,
    prompt_tokens: int,
    new_tokens: int,
    threads: int | None,
    repeat: int,
    against: Path | None,
    plot: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure how fast BUNDLE loads, reads and generates, and the memory it takes.

    Every run is a fresh process. Memory is counted over what the process had after imports; the
    first run is timed apart and a warm-up is not counted. An absent provider is an error: nothing
    is measured on the CPU instead.

    \b
    edgetie bench int8
    edgetie bench int8 --against fp32 --plot bench.png
    edgetie bench int8 --threads 4 --prompt-tokens 512 --json
    """
    from edgetie.harness.latency import bench
    from edgetie.report import plots
    from edgetie.report.progress import live
    from edgetie.report.tables import print_tables, resource_table, speed_table

    if plot is not None:
        plots.require_matplotlib()
        if not os.access(plot.parent, os.W_OK):
            raise click.UsageError(f"--plot {plot}: {plot.parent} is no directory to write to")
    with live(quiet) as progress:
        report = bench(
            bundle,
            provider=provider,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            threads=threads,
            repeat=repeat,
            against=against,
            timeline=plot is not None,
            progress=progress,
        )
    if plot is not None:
        plots.plot_latency(report, plot)
    if as_json:
        common.print_json(report.to_dict())
    elif not quiet:
        print_tables(speed_table(report), resource_table(report))
    if report.latency_problem and not quiet:
        click.echo(f"edgetie: speeds are not valid: {report.latency_problem}", err=True)
