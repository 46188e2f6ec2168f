"""The proof: copies of a tied weight in the file, in the optimized graph and in memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from broken_models import save
from click.testing import CliRunner
from naive_decoder import VOCAB, WIDTH, write_decoder
from naive_decoder import table as random_table
from onnx import TensorProto, helper, numpy_helper, save_model
from own_provider import needs_own_provider

from edgetie.bundle.bundle import open_bundle
from edgetie.bundle.manifest import Manifest, Signature, write_manifest
from edgetie.harness.ties.inspect import inspect_model, tie_status
from edgetie.quantize.quantizer import quantize_model
from edgetie.ties.groups import find_ties


@pytest.mark.slow
def test_real_bundles_keep_one_copy_everywhere(real_bundle: Path, real_int8: Path) -> None:
    for path in (real_bundle, real_int8):
        (tie,) = inspect_model(path, provider="cpu").ties
        assert (tie.file, tie.optimized, tie.memory) == (1, 1, 1)
        assert tie.resident is not None
        assert tie.resident.file_mapped < 0.1 * tie.group.bytes, "pages given back once packed"


@needs_own_provider
@pytest.mark.slow
def test_the_own_provider_reads_a_real_table_where_it_lies(real_int8: Path) -> None:
    inspection = inspect_model(real_int8)
    assert inspection.provider == "edgetie"
    (tie,) = inspection.ties
    assert (tie.file, tie.optimized, tie.memory) == (1, 1, 1)
    assert tie.resident is not None
    assert tie.resident.anonymous < 0.15 * tie.group.bytes
    assert tie.resident.file_mapped > 0.9 * tie.group.bytes


@pytest.mark.slow
def test_a_mapped_table_is_read_where_it_lies(real_mapped: Path) -> None:
    (tie,) = inspect_model(real_mapped).ties
    assert (tie.file, tie.optimized, tie.memory) == (1, 1, 1)
    assert tie.resident is not None
    assert tie.resident.anonymous < 0.1 * tie.group.bytes
    assert [use.op_type for use in tie.group.uses] == ["Gather", "MatMulInteger"]


@pytest.fixture
def folding(tmp_path: Path) -> Path:
    """A large table whose Transpose ONNX Runtime folds: Gather and Transpose→MatMul."""
    rows, columns = 40_000, 64
    table = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["x"], name="lookup"),
            helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "turned"], ["logits"], name="head"),
        ],
        "tied",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", rows])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    return tmp_path / "m.onnx"


def test_a_copy_made_by_constant_folding_is_counted_and_named(folding: Path) -> None:
    (tie,) = inspect_model(folding).ties
    assert tie.file == 1
    assert tie.optimized == 2
    assert any("constant folding" in text and "head" in text for text in tie.causes)


@pytest.mark.slow
def test_command_gates_on_ties(folding: Path, real_int8: Path) -> None:
    from edgetie_cli.main import cli

    broken = CliRunner().invoke(
        cli, ["inspect", str(folding), "--require-tied", "--json"], standalone_mode=False
    )
    assert broken.return_value == 1
    assert "table: copies in the file 1, optimized 2, in memory" in broken.stderr
    (group,) = json.loads(broken.stdout)["tie_groups"]
    assert group["copies"]["optimized"] == 2
    assert {use["op_type"] for use in group["uses"]} == {"Gather", "MatMul"}
    kept = CliRunner().invoke(
        cli, ["inspect", str(real_int8), "--require-tied", "--quiet"], standalone_mode=False
    )
    assert kept.return_value == 0


def test_weights_stored_twice_under_two_names(tmp_path: Path) -> None:
    """What ``tie`` is for; names may look like markup."""
    from edgetie_cli.main import cli

    table = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["emb[/w]", "input_ids"], ["x"]),
            helper.make_node("MatMul", ["x", "head[red]"], ["logits"]),
        ],
        "untied",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", 300])],
        [
            numpy_helper.from_array(table, "emb[/w]"),
            numpy_helper.from_array(np.ascontiguousarray(table.T), "head[red]"),
        ],
    )
    path = tmp_path / "untied.onnx"
    opsets = [helper.make_opsetid("", 21)]
    save_model(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    assert [set(names) for names in inspect_model(path).copies] == [{"emb[/w]", "head[red]"}]
    run = CliRunner().invoke(cli, ["inspect", str(path), "--require-tied"], standalone_mode=False)
    assert run.return_value == 1
    assert "stored 2 times; edgetie tie makes them one" in run.stderr
    assert "emb[/w]" in run.stdout
    assert "head[red]" in run.stdout
    assert "every initializer has one use" not in run.stdout


def test_memory_that_was_not_counted_proves_nothing(folding: Path) -> None:
    from edgetie_cli.main import cli

    inline = folding.with_name("inline.onnx")
    model = onnx.load(folding)
    del model.graph.node[1:]
    model.graph.node.append(
        helper.make_node("Gemm", ["flat", "table"], ["logits"], transB=1, name="head")
    )
    model.graph.node.insert(1, helper.make_node("Reshape", ["x", "shape"], ["flat"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 64]), "shape"))
    del model.graph.output[0].type.tensor_type.shape.dim[0]
    onnx.save(model, inline)
    run = CliRunner().invoke(cli, ["inspect", str(inline), "--require-tied"], standalone_mode=False)
    assert run.return_value == 1
    assert "table: its copies in memory cannot be counted here" in run.stderr


def test_copies_of_codes_in_another_form_are_counted(tmp_path: Path) -> None:
    """ONNX Runtime makes int8 codes uint8, transposes them, and keeps the table for lookups."""
    rows, columns = 34_000, 256
    table = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["x"]),
            helper.make_node("Relu", ["x"], ["h"]),
            helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["h", "turned"], ["logits"], name="head"),
        ],
        "tied",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", rows])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    quantize_model(tmp_path / "m.onnx", tmp_path / "static", scheme="int8-static")
    (tie,) = inspect_model(tmp_path / "static").ties
    assert (tie.file, tie.optimized) == (1, 2)
    assert tie.memory in (1, 2)
    assert any("transposed, for" in text for text in tie.causes)


def test_a_product_of_what_was_looked_up_in_codes_is_measured(tmp_path: Path) -> None:
    """A dequantized row is no activation that was rounded: the product takes floats."""
    rows, columns = 34_000, 256
    codes = np.random.default_rng(0).integers(-127, 128, (rows, columns)).astype(np.int8)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["codes", "input_ids"], ["looked"]),
            helper.make_node("DequantizeLinear", ["looked", "scale"], ["x"]),
            helper.make_node("DequantizeLinear", ["codes", "scale"], ["table"]),
            helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "turned"], ["logits"], name="head"),
        ],
        "tied",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", rows])],
        [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(np.float32(1), "scale")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    (tie,) = inspect_model(tmp_path / "m.onnx").ties
    assert tie.file == 1
    assert tie.memory is not None


def test_nodes_without_names_are_measured(tmp_path: Path) -> None:
    rows, columns = 40_000, 64
    table = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    shape = numpy_helper.from_array(np.array([-1, columns]), "shape")
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["x"]),
            helper.make_node("Reshape", ["x", "shape"], ["flat"]),
            helper.make_node("Relu", ["flat"], ["h"]),
            helper.make_node("Gemm", ["h", "table"], ["logits"], transB=1),
        ],
        "tied",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", rows])],
        [numpy_helper.from_array(table, "table"), shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    (tie,) = inspect_model(tmp_path / "m.onnx").ties
    assert tie.memory == 1


def test_copies_in_branches_and_of_signed_codes(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(300, 48)).astype(np.float32)
    codes = np.clip(table * 60, -126, 127).astype(np.int8)  # their range is no int8 itself
    values = {"table": table, "codes": codes, "again": codes.T.copy(), "yes": np.array(True)}
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("MatMul", ["x", f"{name}_head"], [f"{name}_out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(table.T.copy(), f"{name}_head")],
        )
        for name in ("then", "else")
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("Gather", ["codes", "input_ids"], ["c"]),
        helper.make_node("Cast", ["c"], ["d"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["again"], ["e"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["d", "e"], ["f"]),
        helper.make_node("If", ["yes"], ["g"], **branches),
        helper.make_node("Add", ["f", "g"], ["logits"]),
    ]
    path = save(tmp_path / "model.onnx", nodes, values)
    found = inspect_model(path)
    assert sorted(map(sorted, found.copies)) == [
        ["again", "codes"],
        ["else_head", "table", "then_head"],
    ]
    assert found.weight_bytes > 3 * table.nbytes + 2 * codes.nbytes


def write_bundle(directory: Path, weights: np.ndarray) -> Path:
    ties = find_ties(ir.load(write_decoder(directory, weights)))
    signature = Signature([], [], logits="all", max_positions=64, vocab_size=len(weights))
    manifest = Manifest({}, "causal-lm", "fp32", signature, ties, unique_parameters=6144)
    write_manifest(directory, manifest)
    return directory


def test_tie_status_of_tied_copied_and_untied_files(tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "tied", random_table()))
    status = tie_status(bundle)
    assert (status.groups, status.intact) == (1, True)
    assert "weights: 2 uses" in status.detail

    model = onnx.load(str(bundle.model_path))
    copy = onnx.TensorProto()
    copy.CopyFrom(model.graph.initializer[0])
    copy.name = "copy"
    model.graph.initializer.append(copy)
    next(node for node in model.graph.node if node.op_type == "Transpose").input[0] = "copy"
    onnx.save(model, str(bundle.model_path))
    broken = tie_status(bundle)
    assert broken.intact is False
    assert "had 2 uses and has 1" in broken.detail
    bare = tie_status(open_bundle(bundle.model_path))
    assert bare.intact is False
    assert bare.detail == "weights = copy stored 2 times"

    other = onnx.numpy_helper.from_array(random_table(5).reshape(VOCAB, WIDTH), "copy")
    model.graph.initializer[-1].CopyFrom(other)
    onnx.save(model, str(tmp_path / "untied.onnx"))
    assert tie_status(open_bundle(tmp_path / "untied.onnx")).intact is None
