"""The machine that a report names is the one it is made on."""

from __future__ import annotations

import platform
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

from edgetie.harness.environment import describe_environment, environment_line, processor_name


def test_processor_versions_and_date() -> None:
    environment = describe_environment("1.99")
    assert environment["edgetie"] == version("edgetie")
    assert environment["onnxruntime"] == "1.99"
    assert platform.machine() in environment["system"]
    today = datetime.now(UTC)
    days = {(today - timedelta(days=days)).date().isoformat() for days in (0, 1)}
    assert environment["date"] in days
    line = environment_line(environment)
    assert all(value in line for value in environment.values())


def test_the_processor_has_a_name() -> None:
    name = processor_name()
    assert name
    assert name == " ".join(name.split())
