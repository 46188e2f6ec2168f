"""``edgetie export``."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from edgetie.sources.task_detection import TASKS
from edgetie.targets import TARGETS

from .common import F, output_options, print_json


def _choice(name: str, choices: Iterable[str], help: str) -> Callable[[F], F]:
    """Add an option whose default is the first choice."""
    kind = click.Choice(list(choices))
    return click.option(name, type=kind, default=kind.choices[0], show_default=True, help=help)


@click.command(
    epilog="""\b
Examples:
  edgetie export ./SmolLM2-135M --output smol
  edgetie export model.gguf --output smol --force
  edgetie export HuggingFaceTB/SmolLM2-135M-Instruct --output smol
  edgetie export mypackage.models:build --output mine --logits all
  edgetie export ./base --output mine --adapter pirate=./pirate --adapter poet=./poet"""
)
@click.argument("source")
@click.option(
    "--output", "-o", required=True, type=click.Path(), help="Directory of the bundle to write."
)
@_choice(
    "--target", TARGETS, "Where the bundle will run, which decides the operators of the graph."
)
@_choice(
    "--task",
    ["auto", *TASKS],
    "What the model does; auto detects it from its class and configuration.",
)
@_choice("--precision", ["fp32", "fp16"], "Precision of the weights; fp16 is for GPUs.")
@_choice("--logits", ["last", "all"], "Logits of each prompt's last token, or of every token.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME=DIR",
    help="LoRA adapter in peft's format to switch to at run time; repeat for more.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option(
    "--trust-remote-code", is_flag=True, help="Allow a model directory to run its own Python code."
)
@click.option("--allow-pickle", is_flag=True, help="Load weights in PyTorch's pickle format.")
@click.option(
    "--dequantize",
    is_flag=True,
    help="Export quantized weights of a checkpoint in floating point, not as they are.",
)
@output_options
def command(
    source: str,
    output: str,
    adapters: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Export SOURCE to an ONNX bundle with its tied weights kept as one initializer.

    SOURCE is a transformers directory, a hub id, a .gguf file, or package.module:function, a Python
    callable that returns an nn.Module.
    """
    from edgetie.bundle.atomic import check_destination
    from edgetie.sources.load import check_source

    from .printing.progress import live

    # what is wrong is refused before torch is imported, which takes seconds
    check_destination(output, force=options["force"])
    permissions = ("task", "trust_remote_code", "allow_pickle")
    check_source(source, **{name: options[name] for name in permissions})
    folders = _adapter_folders(adapters)
    from edgetie.export.exporter import export_model

    with live(quiet) as progress:
        report = export_model(source, output, adapters=folders, progress=progress, **options)
    data: dict[str, Any] = {
        "bundle": str(report.bundle.directory),
        "precision": report.manifest.precision,
        "ties": [group.to_dict() for group in report.manifest.ties],
        "weights_bytes": report.weights_bytes,
        "unique_parameter_bytes": report.unique_parameter_bytes,
        "fusion": report.manifest.fusion,
        "adapters": report.manifest.adapters,
        "logit_error": report.agreement.to_dict(),
        "seconds": report.seconds,
        "peak_bytes": report.peak_bytes,
    }
    if as_json:
        print_json(data)
    elif not quiet:
        from .printing.export import print_export

        print_export(report)


def _adapter_folders(adapters: tuple[str, ...]) -> dict[str, Path]:
    """Split each ``NAME=DIR`` and refuse what is not an adapter, before torch is imported."""
    from edgetie.runtime.adapters import require_adapter_name
    from edgetie.sources.peft_adapter import check_peft_adapter

    folders: dict[str, Path] = {}
    for text in adapters:
        name, separator, folder = text.partition("=")
        if not separator or not folder:
            raise click.UsageError(f"--adapter {text}: write NAME=DIR")
        if name in folders:
            raise click.UsageError(f"--adapter {text}: there is an adapter {name} already")
        require_adapter_name(name)
        check_peft_adapter(Path(folder))
        folders[name] = Path(folder)
    return folders
