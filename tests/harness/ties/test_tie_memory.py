"""The subgraph around a tied weight, and the memory that it takes in a session."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from naive_decoder import table, write_decoder
from onnx import TensorProto, helper, numpy_helper, save_model

from edgetie.graph.model_files import load_model
from edgetie.harness.ties import tie_memory
from edgetie.harness.ties.tie_memory import MIN_BYTES, measure_tie
from edgetie.ties.groups import find_ties

TOKENS, WIDTH = 40_000, 64  # 10 MB in fp32


def decoder(path: Path, *, operator: str = "MatMul", **attributes: str) -> ir.Model:
    """Gather and a head over one large table, in external data."""
    weights = np.random.default_rng(0).standard_normal((TOKENS, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("Transpose", ["table"], ["head"], perm=[1, 0]),
        helper.make_node(operator, ["x", "head"], ["logits"], **attributes),
    ]
    graph = helper.make_graph(
        nodes,
        "tied",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    save_model(model, path, save_as_external_data=True, location=f"{path.name}.data")
    return load_model(path)


@pytest.mark.skipif(sys.platform != "linux", reason="resident pages are read from /proc")
def test_memory_of_a_folded_transpose_is_about_one_copy_or_two(tmp_path: Path) -> None:
    model = decoder(tmp_path / "m.onnx")
    (group,) = find_ties(model)
    memory = measure_tie(model, group, "cpu")
    assert memory is not None
    assert 0.9 < (memory.anonymous + memory.file_mapped) / group.bytes < 2.5


def test_the_subgraph_has_the_users_and_open_inputs(tmp_path: Path) -> None:
    model = decoder(tmp_path / "m.onnx")
    (group,) = find_ties(model)
    extracted = tie_memory._extract(model, group)
    assert extracted is not None
    subgraph, feeds = extracted
    assert sorted(node.op_type for node in subgraph.graph) == ["Gather", "MatMul", "Transpose"]
    assert list(subgraph.graph.initializers) == ["table"]  # one initializer for all uses
    shapes = sorted((feed["shape"], feed["dtype"]) for feed in feeds.values())
    assert shapes == [([1, 1], "int64"), ([1, WIDTH], "float32")]


def test_what_cannot_be_measured_is_none(tmp_path: Path) -> None:
    small = load_model(write_decoder(tmp_path / "small", table()))
    (group,) = find_ties(small)
    assert group.bytes < MIN_BYTES
    assert measure_tie(small, group, "cpu") is None
    strange = decoder(tmp_path / "strange.onnx", operator="Einsum", equation="bsh,hv->bsv")
    (group,) = find_ties(strange)
    assert measure_tie(strange, group, "cpu") is None  # its inputs cannot be made up
