"""The command ``edgetie quantize``: what it says of targets."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from quantize_models import plain

from edgetie_cli.main import cli


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ("--target webgpu", "int8-fp16"),
        ("--target web --scheme int4", "int4"),
        ("--target web", None),
        ("--scheme int4", None),
    ],
)
def test_schemes_that_pages_do_not_run_are_named(
    tmp_path: Path, options: str, refused: str | None
) -> None:
    command = f"quantize {plain(tmp_path)} -o {tmp_path / 'out'} {options}"
    result = CliRunner().invoke(cli, command.split())
    assert result.exit_code == 0, result.stderr
    note = f"edgetie deploy --for web does not run {refused}; choose --scheme int8-plain for it"
    assert (note in result.stderr) == (refused is not None)
    assert ("note:" in result.stderr) == (refused is not None)
