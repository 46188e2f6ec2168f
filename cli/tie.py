"""``edgetie tie``."""

from dataclasses import asdict

import click

from .common import max_distance_option, output_options, print_json


@click.command(
    epilog="""\b
Examples:
  edgetie tie broken.onnx --output fixed.onnx
  edgetie tie encoder_model.onnx decoder_model_merged.onnx --output tied
  edgetie tie model.onnx --output one.onnx --max-distance 0.01"""
)
@click.argument("sources", metavar="IN.onnx...", type=click.Path(), nargs=-1, required=True)
@click.option(
    "--output", "-o", required=True, type=click.Path(),
    help="The .onnx file to write. Its weights go to a file of that name with .data added. Any "
    "other name is that of a bundle, for one file or for an encoder and its decoders.",
)  # fmt: skip
@max_distance_option
@click.option("--force", is_flag=True, help="Replace existing files or an existing bundle.")
@output_options
def command(
    sources: tuple[str, ...], output: str, max_distance: float, force: bool, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Merge duplicate weights in ONNX files.

    Copies are found by content: equal, transposed, in another shape, in subgraphs, in another of
    the files. The outputs of old and new files are compared on random input before any file is
    replaced.
    """
    from edgetie.repair import tie_model

    from .printing.progress import live

    with live(quiet) as progress:
        report = tie_model(
            sources, output, max_distance=max_distance, force=force, progress=progress
        )
    if as_json:
        outputs = [outputs.to_dict() for outputs in report.outputs]
        print_json(asdict(report) | {"path": str(report.path), "outputs": outputs})
    elif not quiet:
        from .printing.repair import print_repair

        print_repair(report)
