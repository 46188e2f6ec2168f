"""``edgetie quantize``."""

from __future__ import annotations

from pathlib import Path

import click

from .common import limit_options, output_options, print_json, read_text


@click.command(
    epilog="""\b
Examples:
  edgetie quantize smol --output smol-int8
  edgetie quantize model.onnx --output model-int8 --table aliased
  edgetie quantize smol --output smol-int8 --calibration book.txt --max-perplexity-increase 0.001"""
)
@click.argument("bundle", type=click.Path())
@click.option(
    "--output", "-o", required=True, type=click.Path(), help="Directory of the bundle to write."
)
@click.option(
    "--target",
    type=click.Choice(["cpu"]),
    default="cpu",
    show_default=True,
    expose_value=False,
    help="Where the bundle will run; it chooses the scheme.",
)
@click.option(
    "--layout",
    type=click.Choice(["packed"]),
    default="packed",
    show_default=True,
    expose_value=False,
    help="packed: MatMulNBits and GatherBlockQuantized on one 3-D table.",
)
@click.option(
    "--bits",
    type=click.Choice(["8"]),
    default="8",
    show_default=True,
    expose_value=False,
    help="Bits of a weight.",
)
@click.option(
    "--table",
    type=click.Choice(["shared", "aliased"]),
    default="shared",
    show_default=True,
    help="The tied table as one initializer, or as two entries over the same bytes of the file, "
    "for apps that cannot release a file's pages after start.",
)
@click.option(
    "--calibration",
    type=click.Path(),
    help="A text file like what the model will read, to measure activations on "
    "[default: a built-in text].",
)
@limit_options
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw what each weight costs into this file, if a limit made it matter.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@output_options
def command(
    bundle: str,
    output: str,
    table: str,
    calibration: str | None,
    max_kl: float | None,
    min_top1: float | None,
    max_perplexity_increase: float | None,
    plot: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Quantize BUNDLE, or an .onnx file, to int8 with its tied weights kept as one.

    Weights become 8-bit codes with a scale for each block of a row; torch is not needed. With a
    limit, what int8 costs is measured on the text behind its first 1,024 tokens, and the weights
    that cost most stay in floating point until the limit holds.
    """
    from edgetie.harness.thresholds import Thresholds
    from edgetie.quantize import quantize
    from edgetie.report import plots
    from edgetie.report.progress import live

    if plot:
        plots.require_matplotlib()
    text = read_text(Path(calibration), "--calibration") if calibration else None
    limits = Thresholds(
        max_kl=max_kl, min_top1=min_top1, max_perplexity_increase=max_perplexity_increase
    )
    with live(quiet) as progress:
        report = quantize(
            bundle,
            output,
            table=table,
            calibration=text,
            limits=limits if limits != Thresholds() else None,
            force=force,
            progress=progress,
        )
    if plot and report.costs:
        from edgetie.report.cost_plot import plot_costs

        plot_costs(report.costs, plot)
    if as_json:
        print_json(
            {
                "bundle": str(report.bundle.directory),
                "file_bytes": report.bundle.file_bytes,
                "source_bytes": report.source_bytes,
                "unique_parameters": report.manifest.unique_parameters,
                "ties": [group.to_dict() for group in report.manifest.ties],
                "quantization": report.manifest.quantization,
                "costs": [cost.to_dict() for cost in report.costs],
                "seconds": report.seconds,
            }
        )
    elif not quiet:
        from edgetie.report.quantize_table import print_quantize

        print_quantize(report)
