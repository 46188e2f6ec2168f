"""Every command on damaged input: it succeeds, or refuses in one line and leaves nothing behind.

``EDGETIE_FUZZ_RUNS`` sets how many inputs of each kind are damaged, ``EDGETIE_FUZZ_SEED`` how.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "damage_fuzz.py"
SEED = os.environ.get("EDGETIE_FUZZ_SEED", "0")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each command runs in a fork")
@pytest.mark.parametrize(
    ("kinds", "runs"),
    [
        pytest.param(("onnx", "bundle", "manifest", "tokenizer"), 8, id="bundles"),
        pytest.param(("gguf", "safetensors"), 8, id="sources", marks=pytest.mark.slow),
    ],
)
def test_damaged_input_is_refused_in_one_line(kinds: tuple[str, ...], runs: int) -> None:
    runs = int(os.environ.get("EDGETIE_FUZZ_RUNS", runs))
    done = subprocess.run(
        [sys.executable, SCRIPT, SEED, str(runs), *kinds],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    assert report["runs"] == runs * len(kinds)
    assert report["codes"].get("2", 0) > report["runs"] / 4  # the damage is felt
