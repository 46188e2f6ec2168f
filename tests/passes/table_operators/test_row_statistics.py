"""Means and factors of normalized rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import graph, node, random, run

from edgetie.passes.table_operators import row_statistics as module
from edgetie.passes.table_operators.row_statistics import row_statistics

ROWS = random(50, 24) + np.float32(0.5)
ROWS[3] = 0


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("LayerNormalization", {"axis": -1, "epsilon": 0.01}),
        ("LayerNormalization", {}),
        ("RMSNormalization", {"axis": -1, "epsilon": 0.1}),
        ("SimplifiedLayerNormalization", {"axis": -1}),
        ("LpNormalization", {"axis": -1, "p": 1}),
        ("LpNormalization", {}),
    ],
    ids=str,
)
def test_as_onnx_runtime_normalizes(
    op_type: str, attributes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 16)
    inputs = ["x"] if op_type == "LpNormalization" else ["x", "ones"]
    nodes = [node(op_type, inputs, ["y"], **attributes)]
    constants = {} if len(inputs) < 2 else {"ones": np.ones(24, np.float32)}
    model = graph(nodes, constants, {"x": [50, 24]}, [50, 24])
    means, factors = row_statistics(model.graph[0], ir.tensor(ROWS))
    centered = ROWS if means is None else ROWS - means.numpy()[:, None]
    result = centered * factors.numpy()[:, None]
    np.testing.assert_allclose(result, run(model, x=ROWS), rtol=1e-4, atol=1e-6)
    assert factors.shape == ir.Shape([50])
