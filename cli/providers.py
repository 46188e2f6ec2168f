"""``edgetie providers``: execution providers, which can be had, and why not."""

from __future__ import annotations

import click

from . import common


@click.command()
@click.option(
    "--install",
    metavar="PROVIDER",
    help="Make the environment of its own in which a provider runs that this one lacks.",
)
@common.output_options
def command(install: str | None, as_json: bool, quiet: bool) -> None:
    """List the execution providers: where each can be had, what suits it, what can be measured.

    \b
    edgetie providers
    edgetie providers --install openvino
    """
    from edgetie.progress import live
    from edgetie.providers import environments

    from .printing.provider import print_providers

    if install is not None:
        with live(quiet) as progress:
            environments.install(install, progress)
    found = environments.availability()
    if as_json:
        common.print_json({"providers": [each.to_dict() for each in found]})
    elif not quiet:
        print_providers(found)
