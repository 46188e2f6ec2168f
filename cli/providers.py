"""``edgetie providers``: list execution providers and install environments for them."""

from dataclasses import asdict

import click

from . import common


@click.command()
@click.option(
    "--install",
    "provider",
    metavar="PROVIDER",
    help="Install a separate environment for a provider that this one lacks.",
)
@click.option(
    "--force", is_flag=True, help="Install it even if this machine lacks the driver that it needs."
)
@common.output_options
def command(provider: str | None, force: bool, as_json: bool, quiet: bool) -> None:
    """List execution providers, their availability and recommended schemes.

    \b
    edgetie providers
    edgetie providers --install openvino
    """
    from edgetie.providers.availability import list_availability
    from edgetie.providers.environments import install_environment

    from .printing.progress import live
    from .printing.provider import print_providers

    if provider is not None:
        with live(quiet) as progress:
            install_environment(provider, force=force, progress=progress)
    providers = list_availability()
    if as_json:
        common.print_json({"providers": [asdict(each) for each in providers]})
    elif not quiet:
        print_providers(providers)
