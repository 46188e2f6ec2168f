"""Rows of tables go, and constants of tokens and sizes change only where they mean these."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import runtime_models

from edgetie.bundle.bundle import open_bundle
from edgetie.errors import PruneError
from edgetie.graph.model_files import load_model
from edgetie.prune.pruned_models import VocabularyModels


@pytest.fixture
def models(tmp_path: Path) -> VocabularyModels:
    return VocabularyModels(open_bundle(runtime_models.write_packed(tmp_path)))


def test_the_table_is_sliced_once(models: VocabularyModels) -> None:
    assert (models.rows, models.columns, models.table_bytes) == (320, 320, 320 * 32 * 4)
    (model,) = models.models.values()
    same, dropped = models.prune([7, 3, 300])
    assert (same, dropped) == ({}, 317 * 32)
    table = model.graph.initializers["table"]
    assert table.shape == ir.Shape([3, 32])
    assert table.const_value is not None
    np.testing.assert_array_equal(
        table.const_value.numpy(), runtime_models.weights()["table"][[7, 3, 300]]
    )
    assert models.columns == 3


def test_a_constant_with_two_meanings(tmp_path: Path) -> None:
    """Tokens are compared with 1, which also is an axis."""
    path = runtime_models.write_packed(tmp_path) / "model.onnx"
    model = load_model(path)
    graph = model.graph
    one = ir.Value(name="one", const_value=ir.tensor(np.array(1)), shape=ir.Shape([]))
    one.type = ir.TensorType(ir.DataType.INT64)
    graph.register_initializer(one)
    (ids,) = (value for value in graph.inputs if value.name == "input_ids")
    graph.append(ir.node("Equal", [ids, one], name="is_one"))
    graph.append(ir.node("Add", [one, one], name="two"))
    ir.save(model, path)
    bundle = open_bundle(path)
    models = VocabularyModels(bundle)
    assert models.constant_tokens() == {1}
    (model,) = models.models.values()
    models.prune([0, 5, 1])
    inputs = {node.name: node.inputs for node in model.graph if node.name in ("is_one", "two")}
    values = {name: [v.const_value for v in each if v is not None] for name, each in inputs.items()}
    assert [int(value.numpy()) for value in values["is_one"] if value is not None] == [2]
    assert [int(value.numpy()) for value in values["two"] if value is not None] == [1, 1]


def test_a_model_without_tokens(tmp_path: Path) -> None:
    x = ir.Value(name="x", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Neg", [x])
    node.outputs[0].name = "y"
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 20})
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "model.onnx")
    with pytest.raises(PruneError, match="no table has a row for every token"):
        VocabularyModels(open_bundle(tmp_path / "model.onnx"))


def test_bounds_of_tokens(tmp_path: Path) -> None:
    """A second table has rows for the first tokens only, and others are replaced before."""
    path = runtime_models.write_packed(tmp_path) / "model.onnx"
    model = load_model(path)
    (ids,) = (value for value in model.graph.inputs if value.name == "input_ids")
    for name, bound in (("zero", 0), ("few", 300)):
        value = ir.Value(name=name, const_value=ir.tensor(np.array([bound])), shape=ir.Shape([1]))
        value.type = ir.TensorType(ir.DataType.INT64)
        model.graph.register_initializer(value)
    bounds = [model.graph.initializers[name] for name in ("zero", "few")]
    model.graph.append(ir.node("GreaterOrEqual", [ids, bounds[0]], name="at_least"))
    model.graph.append(ir.node("Less", [ids, bounds[1]], name="less"))
    ir.save(model, path)
    models = VocabularyModels(open_bundle(path))
    models.prune([7, 299, 300, 310])
    (model,) = models.models.values()
    nodes = {node.name: node.inputs[1] for node in model.graph if node.name in ("at_least", "less")}
    values = {
        name: v.const_value.numpy().tolist() for name, v in nodes.items() if v and v.const_value
    }
    assert values == {"at_least": [0], "less": [2]}
    with pytest.raises(PruneError, match=r"node less divides the tokens at \[300\]"):
        VocabularyModels(open_bundle(path)).prune([7, 310, 299])
