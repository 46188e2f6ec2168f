"""The command ``edgetie quantize``."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from edgetie.targets import BLOCK_SIZES, CALIBRATORS, QUANTIZE_SCHEMES, TARGETS

from .common import (
    Duration,
    limit_options,
    max_distance_option,
    output_options,
    print_json,
    require_drawable,
)

_BROWSERS = ("web", "webgpu")
"""Targets that people choose for pages."""


@click.command(
    epilog="""\b
Examples:
  edgetie quantize smol --output smol-int8
  edgetie quantize smol --output smol-web --target web
  edgetie quantize model.onnx --output model-mapped --scheme int8-mapped
  edgetie quantize smol --output smol-int8 --calibration book.txt --max-perplexity-increase 0.1%"""
)
@click.argument("bundle", type=click.Path(), required=False, metavar="BUNDLE")
@click.option(
    "--output", "-o", type=click.Path(), help="Directory of the bundle to write.  [required]"
)
@click.option(
    "--target",
    type=click.Choice(list(TARGETS)),
    default="cpu",
    show_default=True,
    help="Where the bundle will run; it chooses the scheme.",
)
@click.option(
    "--scheme",
    type=click.Choice(list(QUANTIZE_SCHEMES)),
    help="Quantization scheme, instead of the target's.",
)
@click.option(
    "--block-size",
    type=click.Choice([str(size) for size in BLOCK_SIZES]),
    help="Number of weights that share a scale. Smaller blocks are more accurate and make larger "
    "files [default: 64 with 8 bits, 32 with 4].",
)
@click.option(
    "--list-targets",
    is_flag=True,
    help="Print which scheme each target gets, and all schemes, and do nothing else.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="A text file similar to what the model will read, or an .npz file of its inputs by name, "
    "with a first axis for the runs: input_ids (runs, batch, sequence). Inputs of a KV cache may "
    "be missing [default: a built-in text].",
)
@click.option(
    "--calibrator",
    type=click.Choice(CALIBRATORS),
    default="percentile",
    show_default=True,
    help="How activation ranges are found, for schemes with static scales.",
)
@click.option("--int8-kv-cache", is_flag=True, help="Store the KV cache in int8 too.")
@limit_options
@click.option(
    "--time-budget",
    type=Duration(),
    help="With a limit: after this time, as 90 (seconds), 5m or 1h, write the smallest form found "
    "so far that keeps the limit. Ctrl-C does the same at any time.",
)
@click.option(
    "--require-tied-int8",
    is_flag=True,
    help="Fail if a tied weight stays in floating point, or a use of it needs it dequantized.",
)
@max_distance_option
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Plot the cost of each weight to this file, if a limit required measuring it.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@output_options
@click.pass_context
def command(
    context: click.Context,
    /,
    bundle: str | None,
    output: str | None,
    block_size: str | None,
    list_targets: bool,
    max_kl: float | None,
    min_top1: float | None,
    max_perplexity_increase: float | None,
    plot: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Quantize BUNDLE, or an .onnx file. A tied weight stays one.

    The target chooses the scheme; torch is not needed. With a limit, the cost of quantizing each
    weight is measured on the text after its first 1,024 tokens. The weights that cost most get
    smaller blocks, 8 bits instead of 4, or stay in floating point until the limit holds.
    """
    if list_targets:
        _list_targets(as_json)
        return
    for argument, parameter in zip((bundle, output), context.command.params, strict=False):
        if argument is None:
            raise click.MissingParameter(ctx=context, param=parameter)
    assert bundle is not None
    assert output is not None
    from edgetie.harness.accuracy.thresholds import Thresholds
    from edgetie.quantize.quantizer import quantize_model

    from .printing.progress import live

    if plot:
        require_drawable("--plot", plot)
    limits = Thresholds(None, max_kl, min_top1, max_perplexity_increase)
    options["limits"] = limits if limits != Thresholds() else None
    options["block_size"] = int(block_size) if block_size else None
    with live(quiet) as progress:
        report = quantize_model(bundle, output, progress=progress, **options)
    if plot and not any(math.isnan(cost.kl) for cost in report.costs) and report.costs:
        from edgetie.report.plots import plot_costs

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
                "float_weights": list(report.float_weights),
                "dequantized": report.dequantized,
                "near": [asdict(copy) for copy in report.near],
                "merged_near": list(report.merged_near),
                "float_bytes": report.float_bytes,
                "float_share": report.float_share,
                "costs": [cost.to_dict() for cost in report.costs],
                "search": _optional(report.search),
                "smaller_scheme": _optional(report.smaller_scheme),
                "seconds": report.seconds,
            }
        )
    elif not quiet:
        from .printing.quantize import print_quantize

        print_quantize(report)
    scheme = QUANTIZE_SCHEMES[report.manifest.quantization["scheme"]]
    if options["target"] in _BROWSERS and "web" not in scheme.deploy and not quiet:
        advice = f"choose --scheme {TARGETS['web'].scheme} for it"
        click.echo(f"note: edgetie deploy --for web does not run {scheme.name}; {advice}", err=True)


def _optional(record: Any) -> dict[str, Any] | None:
    return None if record is None else asdict(record)


def _list_targets(as_json: bool) -> None:
    if as_json:
        targets = {name: asdict(target) for name, target in TARGETS.items()}
        schemes = {
            n: asdict(each) | {"precision": each.precision} for n, each in QUANTIZE_SCHEMES.items()
        }
        print_json({"targets": targets, "schemes": schemes})
    else:
        from .printing.scheme import print_schemes

        print_schemes()
