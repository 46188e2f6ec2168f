"""``edgetie bench``: load time, latency, tokens per second and memory."""

from __future__ import annotations

from pathlib import Path

import click

from . import common


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
    and the accuracy breaks a limit, as edgetie check does.

    \b
    edgetie bench int8
    edgetie bench int8 --against fp32 --plot bench.png
    edgetie bench int8 --provider cpu --provider openvino --reference fp32 --html report.html
    edgetie bench int8 --prompt-tokens 128 --prompt-tokens 1024 --batch 1 --batch 4
    """
    from edgetie.bundle.bundle import open_bundle
    from edgetie.harness.accuracy.check import check_model
    from edgetie.harness.accuracy.references import resolve_reference
    from edgetie.harness.latency.bench import bench_model
    from edgetie.progress import live
    from edgetie.providers.placement import describe_fallback
    from edgetie.report import plots
    from edgetie.report.html import write_html
    from edgetie.report.tables import (
        accuracy_table,
        models_of,
        print_tables,
        resource_table,
        speed_table,
        titles,
    )

    for option, file in (("--plot", plot), ("--html", html)):
        if file is not None:
            common.require_drawable(option, file)
    with live(quiet) as progress:
        opened = open_bundle(bundle)
        if against is not None:
            open_bundle(against)
        right = None if reference is None else resolve_reference(reference, bundle=opened)
        accuracy = [
            check_model(
                opened,
                right,
                provider=provider,
                threads=threads,
                strict=strict,
                progress=progress,
            )
            for provider in providers
            if right is not None
        ]
        report = bench_model(
            bundle,
            provider=providers,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            batch=batch,
            threads=threads,
            repeat=repeat,
            against=against,
            strict=strict,
            timeline=plot is not None or html is not None,
            progress=progress,
        )
    if as_json:
        found = [each.to_dict() for each in accuracy]
        common.print_json(report.to_dict() | ({"accuracy": found} if found else {}))
    elif not quiet:
        tables = [accuracy_table(*accuracy)] if accuracy else []
        print_tables(speed_table(report), resource_table(report), *tables)
    models = models_of(report)
    for name, each in zip(titles(models), models, strict=True):
        if each.fallback_nodes and not quiet:
            left = describe_fallback(each.nodes_per_provider, each.fallback_nodes)
            click.echo(f"edgetie: {name}: {each.provider} leaves {left}", err=True)
        if each.latency_problem and not quiet:
            problem = each.latency_problem
            click.echo(f"edgetie: {name}: speeds are not valid: {problem}", err=True)
    if plot is not None:
        plots.plot_latency(report, plot)
    if html is not None:
        write_html(report, accuracy, html)
    return common.failed(accuracy)
