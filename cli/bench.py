"""``edgetie bench``: load time, latency, tokens per second and memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import common

if TYPE_CHECKING:
    from edgetie.harness.accuracy.check import AccuracyReport
    from edgetie.harness.latency.bench import LatencyReport


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@common.providers_options
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    multiple=True,
    default=[128],
    show_default=True,
    help="Tokens of the prompt; several times for a sweep.",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(min=2),
    default=64,
    show_default=True,
    help="Tokens to generate; decode speed counts from the second on.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    multiple=True,
    default=[1],
    show_default=True,
    help="Prompts at a time; several times for a sweep.",
)
@click.option(
    "--image",
    type=click.Path(path_type=Path),
    help="Image that a model reads before the prompt, if it reads images  [default: a drawn one].",
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
    "--reference",
    metavar="REF",
    help="Measure accuracy on each provider as well, against this bundle or torch model.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    help="Write tables and plots into one page that needs nothing else.",
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
    providers: tuple[str, ...],
    strict: bool,
    prompt_tokens: tuple[int, ...],
    new_tokens: int,
    batch: tuple[int, ...],
    image: Path | None,
    threads: int | None,
    repeat: int,
    against: Path | None,
    reference: str | None,
    html: Path | None,
    plot: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Measure how fast BUNDLE loads, reads and generates, and the memory it takes.

    Every run is a fresh process. Memory is counted over what the process had after imports; the
    first run is timed apart and a warm-up is not counted. An absent provider is an error: nothing
    is measured on the CPU instead. Under emulation no time is reported. Exits 1 where REF is given
    and the accuracy breaks a limit, as edgetie check does. A masked language model, which generates
    nothing, is timed on forward passes over --prompt-tokens tokens.

    \b
    edgetie bench int8
    edgetie bench int8 --against fp32 --plot bench.png
    edgetie bench int8 --provider cpu --provider openvino --reference fp32 --html report.html
    edgetie bench int8 --prompt-tokens 128 --prompt-tokens 1024 --batch 1 --batch 4
    edgetie bench smolvlm-int8 --image photo.jpg
    """
    from edgetie.bundle.bundle import open_bundle
    from edgetie.harness.accuracy.check import check_model
    from edgetie.harness.accuracy.references import resolve_reference
    from edgetie.harness.latency.bench import bench_model

    from .printing.progress import live

    for option, file in (("--plot", plot), ("--html", html)):
        if file is not None:
            common.require_drawable(option, file)
    accuracy: list[AccuracyReport] = []
    with live(quiet) as progress:
        opened = open_bundle(bundle)
        if against is not None:
            open_bundle(against)
        if reference is not None:
            resolved = resolve_reference(reference, bundle=opened)
            accuracy = [
                check_model(
                    opened, resolved, provider=provider, threads=threads, strict=strict,
                    progress=progress,
                )
                for provider in providers
            ]  # fmt: skip
        report = bench_model(
            bundle,
            provider=providers,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            batch=batch,
            image=image,
            threads=threads,
            repeat=repeat,
            against=against,
            strict=strict,
            timeline=plot is not None or html is not None,
            progress=progress,
        )
    if as_json:
        extra = {"accuracy": [each.to_dict() for each in accuracy]} if accuracy else {}
        common.print_json(report.to_dict() | extra)
    elif not quiet:
        _print(report, accuracy)
    _write_files(report, accuracy, plot, html)
    return common.failed(accuracy)


def _print(report: LatencyReport, accuracy: list[AccuracyReport]) -> None:
    from edgetie.harness.environment import environment_line
    from edgetie.report import tables

    click.echo(environment_line(report.environment))
    tables.print_tables(tables.speed_table(report), tables.resource_table(report))
    if accuracy:
        tables.print_tables(tables.accuracy_table(*accuracy))
        click.echo(f"\naccuracy {tables.verdict(*accuracy)}")
    for line in tables.remarks(report):
        click.echo(f"edgetie: {line}", err=True)


def _write_files(
    report: LatencyReport, accuracy: list[AccuracyReport], plot: Path | None, html: Path | None
) -> None:
    from edgetie.report.html import write_html
    from edgetie.report.plots import plot_latency

    if plot is not None:
        plot_latency(report, plot)
    if html is not None:
        write_html(report, accuracy, html)
