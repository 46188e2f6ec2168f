"""``edgetie compile``: write context binaries for NPUs."""

from pathlib import Path

import click

from . import common


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", required=True, type=click.Path(path_type=Path), help="A new bundle."
)
@click.option(
    "--provider", default="qnn", show_default=True, help="Execution provider to compile for."
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@common.output_options
def command(
    bundle: Path, output: Path, provider: str, force: bool, as_json: bool, quiet: bool
) -> None:
    """Compile a BUNDLE of fixed shapes in advance instead of at session start.

    The graphs for prompts and for single tokens share one context binary and its weights. QNN's
    simulator loads binaries with one graph only (--prompt-tokens 1). Devices load both.

    \b
    edgetie fix-shapes npu8 --output fixed --prompt-tokens 1
    edgetie compile fixed --output compiled
    edgetie check compiled --reference npu --provider qnn
    """
    from edgetie.npu.compile import compile_bundle

    compiled = compile_bundle(bundle, output, provider=provider, force=force)
    files = {path.name: path.stat().st_size for path in compiled.files}
    if as_json:
        common.print_json({"bundle": str(output), "provider": provider, "files": files})
    elif not quiet:
        click.echo(f"{output}: compiled for {provider}, {compiled.file_bytes / 1e6:.1f} MB")
