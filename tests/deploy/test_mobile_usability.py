"""What a phone's execution provider would run of small graphs."""

from __future__ import annotations

import re
from pathlib import Path

import bag_models as bag
import pytest
import runtime_models as tiny

from edgetie.deploy.mobile_usability import usability


@pytest.mark.parametrize("provider", ["NNAPI", "CoreML"])
def test_a_graph_that_it_runs(provider: str, tmp_path: Path) -> None:
    text = "run (float[1, 4] x) => (float[1, 4] z) { y = Add (x, x) z = Relu (y) }"
    bag.write_graph(tmp_path / "model.onnx", text, table=False)
    assert usability(tmp_path / "model.onnx", provider) == (
        f"{provider}: worth using. It would run 2 of 2 nodes in 1 part."
    )


def test_a_decoder_that_it_does_not_run(tmp_path: Path) -> None:
    sentence = usability(tiny.write_packed(tmp_path) / "model.onnx", "NNAPI")
    assert re.fullmatch(
        r"NNAPI: use the CPU instead\. It would run \d of \d\d nodes in \d parts; "
        r"it lacks .*GroupQueryAttention.*; \d\d nodes have no fixed shape\.",
        sentence,
    )
