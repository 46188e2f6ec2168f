"""Two files that compute the same are told from two that do not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from broken_models import LOOKUP
from broken_models import save as save_lookup
from naive_decoder import VOCAB, table, write_decoder
from onnx import TensorProto, helper, numpy_helper

from edgetie.errors import BundleError
from edgetie.harness.ties.equivalence import compare_files
from edgetie.repair import tie_model


def save(path: Path, nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto]) -> Path:
    """A graph over ``x`` (float), ``flag`` (bool) and the constant ``w``."""
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
    ]
    weight = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def add(path: Path, name: str = "w", *, kind: str = "Add") -> Path:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    return save(path, [helper.make_node(kind, ["x", name], ["y"])], [output])


def test_equal_files_are_identical(tmp_path: Path) -> None:
    path = write_decoder(tmp_path, table())
    result = compare_files(path, path, VOCAB)
    assert (result.identical, result.max_abs_error, result.relative_error) == (True, 0, 0)
    assert (result.reason, result.runs_before) == (None, True)


def test_weights_that_differ_are_measured(tmp_path: Path) -> None:
    weights = table()
    before = write_decoder(tmp_path / "a", weights)
    after = write_decoder(tmp_path / "b", weights * np.float32(1.001))
    result = compare_files(before, after, VOCAB)
    assert not result.identical
    assert 1e-4 < result.relative_error < 1e-2
    assert json.loads(json.dumps(result.to_dict()))["identical"] is False


def test_a_file_that_does_not_run_is_named(tmp_path: Path) -> None:
    good, bad = add(tmp_path / "good.onnx"), add(tmp_path / "bad.onnx", "nowhere")
    after = compare_files(good, bad, 8)
    assert not after.identical
    assert after.max_abs_error == math.inf
    assert after.reason
    assert after.runs_before
    before = compare_files(bad, good, 8)
    assert not before.runs_before
    assert before.reason is not None
    assert before.reason.startswith("the old file does not run")
    assert before.to_dict()["max_abs_error"] is None


def test_outputs_behind_a_flag_are_compared_too(tmp_path: Path) -> None:
    def branch(kind: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(f"{kind}_y", TensorProto.FLOAT, None)
        return helper.make_graph(
            [helper.make_node(kind, ["x", "w"], [f"{kind}_y"])], kind, [], [output]
        )

    def choose(path: Path, otherwise: str) -> Path:
        node = helper.make_node(
            "If", ["flag"], ["y"], then_branch=branch("Add"), else_branch=branch(otherwise)
        )
        return save(path, [node], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])

    before = choose(tmp_path / "a.onnx", "Sub")
    assert compare_files(before, choose(tmp_path / "b.onnx", "Sub"), 8).identical
    assert not compare_files(before, choose(tmp_path / "c.onnx", "Mul"), 8).identical


def save_with_input(path: Path, shape: list[int | str]) -> Path:
    """A file that looks up ids of this shape."""
    path = save_lookup(path, [LOOKUP], {"table": table()})
    model = onnx.load(path)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape)
    model.graph.input[0].CopyFrom(ids)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    onnx.save(model, path)
    return path


def test_an_input_that_memory_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    path = save_with_input(tmp_path / "large.onnx", ["batch", 2**31 - 1])
    with pytest.raises(BundleError, match=r"large.onnx: input input_ids .*2147483647.* too large"):
        tie_model(path, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_many_dynamic_axes_are_made_short(tmp_path: Path) -> None:
    path = save_with_input(tmp_path / "deep.onnx", [f"axis{index}" for index in range(40)])
    (outputs,) = tie_model(path, tmp_path / "out.onnx").outputs
    assert outputs.identical
