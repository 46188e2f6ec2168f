"""The table of providers, and the lines under it that say what is absent and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgetie.providers.availability import Availability
from edgetie.providers.registry import PROVIDERS
from edgetie_cli.printing.provider import print_providers


def test_a_provider_says_which_instructions_it_uses_or_why_it_is_absent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = Availability(PROVIDERS["edgetie"], "here", "", "avx2")
    print_providers([Availability(PROVIDERS["cpu"], "here", ""), own])
    shown = capsys.readouterr().out
    assert "| edgetie  | here   |" in shown
    assert shown.endswith("\nedgetie: its kernels use avx2\n")
    print_providers(
        [replace(own, where="", problem="its library was not built", instruction_set="")]
    )
    shown = capsys.readouterr().out
    assert "| edgetie  | no     |" in shown
    assert shown.endswith("\nedgetie: its library was not built\n")
