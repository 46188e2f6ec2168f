"""edgetie's own kernels for ARM64, emulated: every instruction set on cores that have it.

``EDGETIE_ARM64_TOKENS`` sets how many tokens of the real model each core decodes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from arm64 import CORES, install_cores, package_for_arm64, run_script

from edgetie.bundle.bundle import open_bundle
from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.session import open_session
from edgetie.runtime.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

SUPPORT = Path(__file__).parents[1] / "support"
TOKENS = int(os.environ.get("EDGETIE_ARM64_TOKENS", "16"))
PROMPT = "Why is the sky blue, and why is it red in the evening? Explain it to a child."
SETS = [
    ("arm64-a53", "", "neon"),
    ("arm64-a76", "dotprod", "dotprod"),
    ("arm64-n2", "", "i8mm"),
    ("arm64-n2", "dotprod", "dotprod"),
    ("arm64-n2", "neon", "neon"),
]
"""Core, the instruction set that is asked for, if any, and the one that is used."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with a library for ARM64."""
    pytest.importorskip("ziglang", reason="compiles for ARM64")
    install_cores()
    folder = tmp_path_factory.mktemp("package")
    package_for_arm64(folder)
    return folder


@pytest.mark.parametrize(("core", "wanted", "used"), SETS)
def test_random_nodes_are_computed_within_rounding(
    package: Path, core: str, wanted: str, used: str
) -> None:
    report = json.loads(run_script(core, package, wanted, SUPPORT / "kernel_fuzz.py", 3, 100))
    assert (report["set"], report["wrong"]) == (used, [])


@pytest.mark.parametrize(("core", "wanted", "used"), SETS)
def test_attention_equals_onnx_runtimes(package: Path, core: str, wanted: str, used: str) -> None:
    output = run_script(core, package, wanted or used, SUPPORT / "attention_cases.py", 0, 40)
    assert output == ""


@pytest.mark.parametrize("core", CORES)
def test_the_real_model_gives_the_tokens_of_this_machine(
    real_int8: Path, package: Path, core: str
) -> None:
    tokenizer = Tokenizer.from_bundle(open_bundle(real_int8))
    prompt = tokenizer.encode(PROMPT)
    session = open_session(real_int8, provider="edgetie")
    steps = generate(session, [prompt], max_new_tokens=TOKENS, stop_token_ids=frozenset())
    expected = [int(step.tokens[0]) for step in steps]
    command = (SUPPORT / "greedy_tokens.py", real_int8, TOKENS, json.dumps(prompt))
    assert json.loads(run_script(core, package, "", *command)) == expected
