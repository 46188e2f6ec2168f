"""Random nodes on edgetie's provider against plain references, on every instruction set.

``EDGETIE_FUZZ_RUNS`` sets how many runs each instruction set gets, ``EDGETIE_FUZZ_SEED`` which.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from instruction_sets import SETS, select_set
from kernel_cases import excess, random_cases
from kernel_models import open_session

SCRIPT = Path(__file__).parents[1] / "support" / "kernel_fuzz.py"
RUNS = os.environ.get("EDGETIE_FUZZ_RUNS", "300")
SEED = os.environ.get("EDGETIE_FUZZ_SEED", "0")


@pytest.mark.parametrize("instruction_set", SETS)
def test_random_nodes_are_computed_within_rounding(instruction_set: str) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, SEED, RUNS],
        env=select_set(instruction_set) | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    assert sum(report["runs"].values()) >= int(RUNS)


def test_the_references_agree_with_the_cpu_provider() -> None:
    # twice the bound: with ONNX Runtime's kernels float32 rounds in other places
    wrong = []
    for _, case in random_cases(1, 120):
        session = open_session(case.model, plugin=False)
        for run in case.runs:
            if run.results is not None:
                errors = map(excess, run.results, session.run(None, run.feeds))
                wrong += [case.description] if max(errors) > 2 else []
    assert wrong == []
