"""What a phone's execution provider would run of small graphs."""

from __future__ import annotations

from pathlib import Path

import bag_models as bag
import pytest
import runtime_models as tiny

from edgetie.deploy.mobile_usability import Usability, usability


@pytest.mark.parametrize("provider", ["NNAPI", "CoreML"])
def test_a_graph_that_it_runs(provider: str, tmp_path: Path) -> None:
    text = "run (float[1, 4] x) => (float[1, 4] z) { y = Add (x, x) z = Relu (y) }"
    bag.write_graph(tmp_path / "model.onnx", text, table=False)
    answer = usability(tmp_path / "model.onnx", provider)
    assert (answer.nodes, answer.supported, answer.partitions) == (2, 2, 1)
    assert answer.advice == "yes"
    assert answer.sentence() == f"{provider}: worth using. It would run 2 of 2 nodes in 1 part."


def test_a_decoder_that_it_does_not_run(tmp_path: Path) -> None:
    answer = usability(tiny.write_packed(tmp_path) / "model.onnx", "NNAPI")
    assert answer.advice == "no"
    assert answer.supported < answer.nodes
    assert "GroupQueryAttention" in answer.missing_operators


def test_a_sentence_gives_the_reasons() -> None:
    answer = Usability("NNAPI", 9, 4, 2, ("Range", "Trilu"), 3, "maybe")
    assert answer.sentence() == (
        "NNAPI: worth measuring. It would run 4 of 9 nodes in 2 parts; it lacks Range, Trilu; "
        "3 nodes have no fixed shape."
    )
