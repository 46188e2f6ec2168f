"""Damage of an ONNX file's structure is found before anything works on the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    TensorProto,
    TypeProto,
    helper,
    numpy_helper,
)

from edgetie.errors import BundleError
from edgetie.graph.structure import damage_of, read_proto, tensor_bytes


def sample() -> ModelProto:
    """Two products, an If whose branch reads a name of the graph around it, and a function."""
    branch = helper.make_graph(
        [helper.make_node("Add", ["m", "m"], ["b"])],
        "branch", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "first"),
        helper.make_node("If", ["flag"], ["c"], "choice", then_branch=branch, else_branch=branch),
        helper.make_node("Gemm", ["c", "w"], ["g"], "second", transB=1),
        helper.make_node("Twice", ["g"], ["y"], "call", domain="own"),
    ]
    graph = helper.make_graph(
        nodes, "sample",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
        [numpy_helper.from_array(np.ones((4, 4), np.float32), "w"),
         numpy_helper.from_array(np.array(True), "flag")],
    )  # fmt: skip
    opset, own = helper.make_opsetid("", 21), helper.make_opsetid("own", 1)
    twice = helper.make_function(
        "own", "Twice", ["a"], ["r"], [helper.make_node("Add", ["a", "a"], ["r"])], [opset]
    )
    return helper.make_model(graph, opset_imports=[opset, own], ir_version=10, functions=[twice])


def test_a_sound_model_is_read(tmp_path: Path) -> None:
    onnx.save(sample(), tmp_path / "m.onnx")
    assert damage_of(sample()) is None
    assert read_proto(tmp_path / "m.onnx").graph.name == "sample"


def test_nodes_may_be_in_any_order() -> None:
    model = sample()
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert damage_of(model) is None


def duplicate_output(graph: GraphProto) -> None:
    graph.node[2].output[0] = "m"


def depend_on_itself(graph: GraphProto) -> None:
    graph.node[0].input[0] = "c"  # which the branch makes of m


def change_payload(graph: GraphProto) -> None:
    graph.node[2].attribute[0].type = AttributeProto.STRING


def change_kind(graph: GraphProto) -> None:
    attribute = graph.node[2].attribute[0]
    attribute.CopyFrom(helper.make_attribute("transB", 1.5))


def rename(graph: GraphProto) -> None:
    graph.node[2].attribute[0].name = "transX"


def lose_branch(graph: GraphProto) -> None:
    del graph.node[1].attribute[0]


def cut(graph: GraphProto) -> None:
    graph.initializer[0].raw_data = graph.initializer[0].raw_data[:-1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda g: g.node[0].input.__setitem__(1, "absent"), "first .* reads absent"),
        (lambda g: g.output[0].__setattr__("name", "absent"), "nothing produces output absent"),
        (duplicate_output, "second .* produces m, which is there already"),
        (lambda g: g.initializer[1].__setattr__("name", "w"), "initializer w is there twice"),
        (lambda g: g.input.append(g.input[0]), "input x is there twice"),
        (depend_on_itself, "depends on itself"),
        (change_payload, "transB of node second .* is of the wrong kind"),
        (change_kind, "transB of node second .* is of the wrong kind"),
        (rename, "transX, which Gemm does not have"),
        (lambda g: g.node[2].attribute.append(g.node[2].attribute[0]), "transB twice"),
        (lambda g: g.node[2].attribute[0].__setattr__("type", 0), "has no type"),
        (lambda g: g.node[1].attribute[0].ClearField("g"), "_branch .* has no value"),
        (lose_branch, "choice .* lacks attribute"),
        (lambda g: g.node[0].input.pop(), "first .* has 1 inputs"),
        (cut, "the data of tensor w does not fill its shape"),
        (lambda g: g.initializer[0].ClearField("raw_data"), "does not fill its shape"),
        (lambda g: g.initializer[0].dims.__setitem__(0, -4), "tensor w has a negative size"),
        (lambda g: g.initializer[0].__setattr__("data_type", 99), "w has the unknown type 99"),
        (lambda g: g.input[0].type.tensor_type.__setattr__("elem_type", 77), "x has the unknown"),
        (lambda g: g.input[0].type.tensor_type.shape.dim[0].__setattr__("dim_value", -2),
         "value x has the size -2"),
        (lambda g: g.input[0].type.CopyFrom(TypeProto()), "input x has no type"),
    ],
)  # fmt: skip
def test_damage_of_a_graph(
    damage: Callable[[GraphProto], object], message: str, tmp_path: Path
) -> None:
    model = sample()
    damage(model.graph)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializePartialToString())
    with pytest.raises(BundleError, match=rf"m\.onnx: damaged, .*{message}") as caught:
        read_proto(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["first", "sample", "flag", "transB", "rows", "Twice", "branch"])
def test_names_that_are_not_text(name: str) -> None:
    data = sample().SerializeToString()
    assert name.encode() in data
    model = ModelProto.FromString(data.replace(name.encode(), b"\xff" + name[1:].encode()))
    assert "is not text" in (damage_of(model) or "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.__setattr__("ir_version", 1 << 40), "IR version"),
        (lambda m: m.opset_import[0].__setattr__("version", 1 << 40), "its opset is"),
        (lambda m: m.opset_import.pop(0), "does not say which opset"),
        (lambda m: m.graph.initializer.append(TensorProto(
            name="e", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)),
         "external data of e is not a range of a file"),
        (lambda m: m.functions[0].node[0].input.__setitem__(0, "z"), "reads z"),
        (lambda m: m.functions[0].node[0].CopyFrom(
            helper.make_node("Twice", ["a"], ["r"], domain="own")), "Twice calls itself"),
    ],
)  # fmt: skip
def test_damage_around_the_graph(change: Callable[[ModelProto], object], message: str) -> None:
    model = sample()
    change(model)
    assert message in (damage_of(model) or "")


def test_files_that_are_cut_short(tmp_path: Path) -> None:
    model = sample()
    model.graph.node[3].CopyFrom(helper.make_node("Neg", ["g"], ["y"]))
    del model.functions[:], model.opset_import[1:]
    whole = model.SerializeToString()
    for size in range(len(whole)):
        (tmp_path / "cut.onnx").write_bytes(whole[:size])
        with pytest.raises(BundleError, match=r"cut\.onnx: "):
            read_proto(tmp_path / "cut.onnx")


def test_bytes_of_tensors() -> None:
    make = helper.make_tensor
    assert tensor_bytes(make("t", TensorProto.INT4, [3], [1, 2, 3])) == 2
    assert tensor_bytes(make("t", TensorProto.DOUBLE, [2], [1, 2])) == 16
    assert tensor_bytes(make("t", TensorProto.STRING, [2], [b"a", b"b"])) == 0


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("dtype", ["FLOAT16", "BFLOAT16", "INT4", "BOOL", "INT64", "DOUBLE"])
def test_values_may_be_numbers_or_bytes(dtype: str, raw: bool) -> None:
    model, kind = sample(), TensorProto.DataType.Value(dtype)
    size = tensor_bytes(TensorProto(data_type=kind, dims=[3]))
    values: bytes | list[int] = bytes(size) if raw else [0, 1, 0]
    model.graph.initializer.append(helper.make_tensor("t", kind, [3], values, raw=raw))
    assert damage_of(model) is None


def test_sizes_between_nodes_may_be_products_of_those_of_inputs() -> None:
    model = sample()
    flat = helper.make_tensor_value_info("m", TensorProto.FLOAT, [1 << 40])
    model.graph.value_info.append(flat)
    assert damage_of(model) is None
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1 << 40
    assert damage_of(model) == f"value x has the size {1 << 40}"
