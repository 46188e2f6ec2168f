"""``edgetie deploy``: write a starter application."""

import shlex
from pathlib import Path

import click

from edgetie.deploy.targets import DEPLOY_TARGETS

from . import common


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "target",
    required=True,
    type=click.Choice(list(DEPLOY_TARGETS)),
    help="Where the app runs.",
)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="A new folder."
)
@click.option(
    "--ort",
    "ort_format",
    is_flag=True,
    help="Write the model as one .ort file, with the operators that a reduced build needs.",
)
@click.option("--force", is_flag=True, help="Replace a folder that this command wrote.")
@common.output_options
def command(
    bundle: Path,
    target: str,
    output: Path,
    ort_format: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write a folder that runs as it is: the model, its tokenizer, a starter program, a README.

    \b
    edgetie deploy int8 --for c --output app
    edgetie deploy int8 --for c --ort --output small
    edgetie quantize fp32 --target web --output web8
    edgetie deploy web8 --for web --output site
    """
    from edgetie.deploy.deploy import deploy_model

    from .printing.progress import live

    with live(quiet) as progress:
        deployment = deploy_model(
            bundle, target, output, ort_format=ort_format, force=force, progress=progress
        )
    if as_json:
        common.print_json(deployment.to_dict())
    elif not quiet:
        size = sum(deployment.files.values()) / 1e6
        click.echo(f"{output}: {deployment.scheme} for {target}, {size:.1f} MB; start it with")
        for line in (f"cd {shlex.quote(str(output))}", *deployment.target.start):
            click.echo(f"  {line}")
    for note in deployment.notes if not quiet else ():
        click.echo(f"note: {note}", err=True)
