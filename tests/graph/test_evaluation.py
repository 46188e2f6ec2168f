"""Small graphs are computed in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.external_data
from small_graphs import SHAPE, WIDTH, X, graph, node, random

from edgetie.graph.evaluation import evaluate


def test_an_extracted_part_is_computed() -> None:
    model = graph(
        [node("Abs", ["x"], ["a"]), node("Add", ["a", "w"], ["b"]), node("Neg", ["b"], ["y"])],
        {"w": random(WIDTH)},
        shapes={"a": SHAPE},
    )
    a, b = model.graph[0].outputs[0], model.graph[1].outputs[0]
    part = ir.convenience.extract(model.graph, [a], [b])
    (result,) = evaluate(part, {"a": X})
    np.testing.assert_array_equal(result, X + random(WIDTH))
    assert len(model.graph) == 3, "the graph itself is as before"


def test_external_initializers_are_read(tmp_path: Path) -> None:
    model = graph([node("Neg", ["w"], ["n"]), node("Add", ["x", "n"], ["y"])], {"w": random(WIDTH)})
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    loaded = ir.load(tmp_path / "m.onnx")
    part = ir.convenience.extract(loaded.graph, [], [loaded.graph[0].outputs[0]])
    (result,) = evaluate(part)
    np.testing.assert_array_equal(result, -random(WIDTH))
    assert isinstance(loaded.graph.initializers["w"].const_value, ir.ExternalTensor)
