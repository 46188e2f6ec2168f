"""The tables of targets and schemes, and what follows from them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from edgetie.deploy.targets import DEPLOY_TARGETS
from edgetie.errors import EdgetieError, QuantizeError
from edgetie.harness.accuracy.thresholds import Thresholds, default_thresholds
from edgetie.quantize.formats.scheme_formats import FORMATS, weight_formats
from edgetie.targets import BLOCK_SIZES, SCHEMES, TARGETS, find_scheme, find_target


def test_names_are_keys_and_refer_to_each_other() -> None:
    assert all(name == row.name for name, row in (SCHEMES | TARGETS).items())
    assert {target.scheme for target in TARGETS.values()} <= SCHEMES.keys()
    formats = {
        each for row in SCHEMES.values() for each in (row.embedding_format, row.linear_format)
    }
    assert formats == {*FORMATS, None}
    assert {name for row in SCHEMES.values() for name in row.deploy} == DEPLOY_TARGETS.keys()


@pytest.mark.parametrize("name", SCHEMES)
def test_each_scheme_is_consistent(name: str) -> None:
    row = SCHEMES[name]
    assert row.weights_in_memory in ("prepacked", "mapped", "mixed")
    assert row.in_checkpoint or name.startswith(row.precision)
    assert json.dumps(asdict(row))
    formats = weight_formats(row)
    assert (formats is None) == (row.precision == "fp16")
    if formats is not None:
        assert formats[1].spec(128).bits == row.linear_bits
        assert formats[0].spec(128).bits == row.embedding_bits
        assert (formats[1].spec(128).block is not None) == row.has_blocks


def test_limits_are_those_of_the_scheme_or_its_precision() -> None:
    for name, row in SCHEMES.items():
        limits = row.limits or SCHEMES[row.precision].limits
        assert limits is not None
        assert default_thresholds(name if row.limits else row.precision) == Thresholds(*limits)
    assert default_thresholds("int8-static16").min_top1 == 0.93


def test_deploy_targets_run_the_scheme_that_they_advise() -> None:
    for target in DEPLOY_TARGETS.values():
        assert find_target(target.quantize).scheme in target.schemes
        assert "fp32" in target.schemes
    assert "int8-static" not in DEPLOY_TARGETS["node"].schemes
    assert DEPLOY_TARGETS["web"].schemes == (
        "fp32", "int8-mapped", "int8-plain", "int8-dynamic",
    )  # fmt: skip


def test_find_scheme() -> None:
    assert find_scheme().name == "int8"
    assert find_scheme("web").name == "int8-plain"
    assert find_scheme("web", scheme="int4").name == "int4"
    for size in BLOCK_SIZES:
        assert find_scheme(block_size=size).block_size == size
    assert SCHEMES["int8"].block_size is None


def test_what_there_is_not() -> None:
    with pytest.raises(EdgetieError, match="target='moon': unknown; one of cpu") as target:
        find_scheme("moon")
    assert (target.value.parameter, target.value.value) == ("target", "moon")
    with pytest.raises(QuantizeError, match="scheme='int3': unknown; one of int8"):
        find_scheme(scheme="int3")
    with pytest.raises(QuantizeError, match="block_size: int8-mapped has no blocks"):
        find_scheme(scheme="int8-mapped", block_size=16)
    with pytest.raises(QuantizeError, match="block_size=48: not one of 16, 32, 64"):
        find_scheme(block_size=48)


def test_the_tables_need_no_onnx() -> None:
    code = (
        "import sys, edgetie.targets; sys.exit(any(n.split('.')[0] == 'onnx' for n in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
