"""The table of deploy targets, against those of schemes and templates."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import pytest

from edgetie.deploy.targets import DEPLOY_TARGETS, DeployTarget
from edgetie.targets import SCHEMES, TARGETS

SPECS = list(DEPLOY_TARGETS.values())


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_targets_name_existing_schemes_and_templates(spec: DeployTarget) -> None:
    assert DEPLOY_TARGETS[spec.name] is spec
    assert set(spec.schemes) <= {*SCHEMES, "fp32"}
    assert TARGETS[spec.quantize].scheme in spec.schemes
    for name in filter(None, (spec.name, spec.shared)):
        assert (files("edgetie.deploy") / "templates" / name).is_dir()
    assert spec.in_c == (spec.name in ("c", "android", "ios"))
    assert spec.ort_format == (spec.name not in ("node", "web"))
    assert bool(spec.kernels) == spec.ort_format
    assert spec.mobile in ("", "NNAPI", "CoreML")
    assert spec.start
    assert spec.checked


def test_the_table_is_free_of_onnx() -> None:
    code = "import sys, edgetie.deploy.targets; assert 'onnx' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
