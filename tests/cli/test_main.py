"""Parameters of the library are spelled as options of a command, and its log is shown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from command_line import edgetie, refused

from edgetie_cli.main import COMMANDS, as_option, cli

PARAMS = [
    click.Argument(["source"]),
    click.Option(["-o", "--output"]),
    click.Option(["--for", "target"]),
    click.Option(["--provider", "providers"], multiple=True),
    click.Option(["--force"], is_flag=True),
]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("force", True, "--force"),
        ("cache_bits", 8, "--cache-bits 8"),
        ("cache_bits", None, "--cache-bits"),
        ("output", "x", "--output x"),
        ("target", "web", "--for web"),
        ("provider", "cuda", "--provider cuda"),
        ("source", Path("model"), "model"),
        ("source", None, "SOURCE"),
    ],
)
def test_parameters_become_options(name: str, value: object, text: str) -> None:
    assert as_option(PARAMS, name, value) == text


def test_every_command_has_the_shared_options() -> None:
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        options = {option for param in command.params for option in param.opts}
        assert {"--json", "--quiet", "--verbose", "-v"} <= options


def test_an_error_of_the_library_names_options(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "edgetie.json").write_text("{}", encoding="utf-8")
    refused(
        edgetie("inspect", "bundle", "--provider", "nowhere", cwd=tmp_path), "not a valid manifest"
    )
    refused(edgetie("providers", "--install", "nnapi", cwd=tmp_path), "--install nnapi: ")


def test_verbose_shows_the_log(tmp_path: Path) -> None:
    code = (
        "import logging, click; from edgetie_cli.common import output_options\n"
        "@click.command()\n@output_options\n"
        "def command(as_json, quiet):\n    logging.getLogger('edgetie.x').debug('swallowed')\n"
        "command()"
    )
    for arguments, stderr in ((["-v"], "DEBUG edgetie.x: swallowed\n"), ([], "")):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True, text=True, check=True, cwd=tmp_path,
        )  # fmt: skip
        assert done.stderr == stderr
        assert done.stdout == ""
