"""External data files are listed and checked without reading them."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import WIDTH, graph, node, random

from edgetie.errors import BundleError
from edgetie.graph.external_data import byte_range, check_external_data, external_data_files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    output = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    weight = numpy_helper.from_array(random(WIDTH, WIDTH), "inner")
    branch = helper.make_graph(
        [node("MatMul", ["x", "inner"], ["b"])], "branch", [], [output], [weight]
    )
    nodes = [
        node("If", ["flag"], ["c"], then_branch=branch, else_branch=branch),
        node("MatMul", ["c", "w"], ["y"]),
    ]
    model = graph(nodes, {"w": random(WIDTH, WIDTH), "flag": [True]})
    onnx.save(
        ir.serde.serialize_model(model), tmp_path / "m.onnx",
        save_as_external_data=True, location="m.data", size_threshold=0,
    )  # fmt: skip
    return tmp_path / "m.onnx"


def change(path: Path, **entries: str) -> None:
    model = onnx.load(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == "w")
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def test_files_are_listed_and_fit(path: Path) -> None:
    assert external_data_files(path) == [path.parent / "m.data"]
    assert check_external_data(path).graph.node


def test_missing_and_truncated_files_are_named(path: Path) -> None:
    data = path.parent / "m.data"
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=r"m\.data: .* bytes, but tensor \w+ ends at"):
        check_external_data(path)
    data.unlink()
    with pytest.raises(BundleError, match=r"m\.data: external data of m\.onnx is missing"):
        check_external_data(path)


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "../m.data"}, {"location": "/m.data"}, {"location": ""},
        {"location": "m.data", "offset": "-1"}, {"location": "m.data", "length": "many"},
    ],
)  # fmt: skip
def test_ranges_outside_of_the_folder_are_refused(path: Path, entries: dict[str, str]) -> None:
    change(path, **entries)
    with pytest.raises(BundleError, match="external data of w is not a range of a file"):
        check_external_data(path)


def test_other_files_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_bytes(b"not a model")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="ONNX model"):
        external_data_files(tmp_path / "text.onnx")
    with pytest.raises(BundleError, match="or an empty one"):
        external_data_files(tmp_path / "empty.onnx")


def test_byte_ranges(path: Path) -> None:
    model = ir.load(path)
    file, _, length = byte_range(model.graph.initializers["w"])
    assert Path(file) == path.parent / "m.data"
    assert length == WIDTH * WIDTH * 4
    assert byte_range(ir.Value(const_value=ir.tensor([1.0]))) is None
