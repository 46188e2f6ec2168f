"""``edgetie export``."""

from __future__ import annotations

from typing import Any

import click

from edgetie.targets import TARGETS

from .common import output_options, print_json


@click.command(
    epilog="""\b
Examples:
  edgetie export ./SmolLM2-135M --output smol
  edgetie export model.gguf --output smol --force
  edgetie export HuggingFaceTB/SmolLM2-135M-Instruct --output smol
  edgetie export mypackage.models:build --output mine --logits all"""
)
@click.argument("source")
@click.option(
    "--output", "-o", required=True, type=click.Path(), help="Directory of the bundle to write."
)
@click.option(
    "--target",
    type=click.Choice(list(TARGETS)),
    default="cpu",
    show_default=True,
    help="Where the bundle will run, which decides the operators of the graph.",
)
@click.option(
    "--task",
    type=click.Choice(["auto", "causal-lm", "masked-lm", "seq2seq-lm", "speech-seq2seq"]),
    default="auto",
    show_default=True,
    help="What the model does; auto detects it from its class and configuration.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Precision of the weights; fp16 is for GPUs.",
)
@click.option(
    "--logits",
    type=click.Choice(["last", "all"]),
    default="last",
    show_default=True,
    help="Logits of each prompt's last token, or of every token.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option(
    "--trust-remote-code", is_flag=True, help="Allow a model directory to run its own Python code."
)
@click.option("--allow-pickle", is_flag=True, help="Load weights in PyTorch's pickle format.")
@output_options
def command(
    source: str,
    output: str,
    target: str,
    task: str,
    precision: str,
    logits: str,
    force: bool,
    trust_remote_code: bool,
    allow_pickle: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Export SOURCE to an ONNX bundle with its tied weights kept as one initializer.

    SOURCE is a transformers directory, a hub id, a .gguf file, or package.module:function, a Python
    callable that returns an nn.Module.
    """
    from edgetie.progress import live
    from edgetie.sources.load import locate_source

    locate_source(source)  # a wrong path is refused before torch is imported, which takes seconds
    from edgetie.export.exporter import export_model

    with live(quiet) as progress:
        report = export_model(
            source,
            output,
            target=target,
            task=task,
            precision=precision,
            logits=logits,
            force=force,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            progress=progress,
        )
    data: dict[str, Any] = {
        "bundle": str(report.bundle.directory),
        "precision": precision,
        "ties": [group.to_dict() for group in report.manifest.ties],
        "weights_bytes": report.weights_bytes,
        "unique_parameter_bytes": report.unique_parameter_bytes,
        "fusion": report.manifest.fusion,
        "logit_error": report.agreement.to_dict(),
        "seconds": report.seconds,
        "peak_bytes": report.peak_bytes,
    }
    if as_json:
        print_json(data)
    elif not quiet:
        from .printing.export import print_export

        print_export(report)
