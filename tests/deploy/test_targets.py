"""The table of deploy targets, against those of schemes and templates."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import pytest

from edgetie.deploy.targets import DEPLOY_TARGETS, DeployTarget
from edgetie.targets import SCHEMES, TARGETS

ROWS = list(DEPLOY_TARGETS.values())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_rows_name_what_there_is(row: DeployTarget) -> None:
    assert DEPLOY_TARGETS[row.name] is row
    assert set(row.schemes) <= {*SCHEMES, "fp32"}
    assert TARGETS[row.quantize].scheme in row.schemes
    for name in (row.name, *row.shared):
        assert (files("edgetie.deploy") / "templates" / name).is_dir()
    assert row.header == row.tables == ("native" in row.shared)
    assert row.mobile in ("", "NNAPI", "CoreML")
    assert row.start
    assert row.checked


def test_the_table_is_free_of_onnx() -> None:
    code = "import sys, edgetie.deploy.targets; assert 'onnx' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
