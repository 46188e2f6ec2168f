"""Models are loaded and written with shared byte ranges."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from small_graphs import WIDTH, graph, node, random

from edgetie.errors import BundleError
from edgetie.graph.external_data import byte_range
from edgetie.graph.model_files import (
    UncachedTensor,
    load_model,
    read_uncached,
    remove_weights_from_inputs,
    write_models,
)

WEIGHT = random(WIDTH, WIDTH)


def matmuls(**weights: np.ndarray) -> ir.Model:
    names = list(weights)
    nodes = [node("MatMul", ["x", names[0]], ["m"]), node("MatMul", ["m", names[-1]], ["y"])]
    return graph(nodes, weights)


def write(tmp_path: Path, model: ir.Model, **options: object) -> Path:
    (path,) = write_models({"m.onnx": model}, tmp_path, data="m.data", same={}, **options)
    return path


def test_weights_are_aligned_and_small_tensors_stay_inline(tmp_path: Path) -> None:
    model = matmuls(a=WEIGHT, b=WEIGHT + 1)
    model.graph.initializers["b"].const_value = ir.LazyTensor(
        lambda: ir.tensor(WEIGHT + 1), dtype=ir.DataType.FLOAT, shape=ir.Shape(WEIGHT.shape)
    )
    path = write(tmp_path, model)
    loaded = load_model(path).graph.initializers
    assert [byte_range(value)[1:] for value in loaded.values()] == [(0, 16384), (16384, 16384)]
    np.testing.assert_array_equal(loaded["b"].const_value.numpy(), WEIGHT + 1)
    small = graph([node("Mul", ["x", "s"], ["y"])], {"s": random(WIDTH)})
    directory = tmp_path / "small"
    directory.mkdir()
    write(directory, small)
    assert not (directory / "m.data").exists()


def test_models_share_the_bytes_of_equal_weights(tmp_path: Path) -> None:
    first, second = matmuls(a=WEIGHT), matmuls(a=WEIGHT.reshape(WIDTH, WIDTH))
    same = {second.graph.initializers["a"]: first.graph.initializers["a"]}
    paths = write_models({"1.onnx": first, "2.onnx": second}, tmp_path, data="d", same=same)
    ranges = {byte_range(load_model(path).graph.initializers["a"]) for path in paths}
    assert len(ranges) == 1
    assert (tmp_path / "d").stat().st_size == WEIGHT.nbytes


def test_entries_over_the_same_bytes_stay_so(tmp_path: Path) -> None:
    first = load_model(write(tmp_path, matmuls(a=WEIGHT, b=WEIGHT + 1)))
    a, b = first.graph.initializers.values()
    b.const_value = a.const_value
    directory = tmp_path / "again"
    directory.mkdir()
    loaded = load_model(write(directory, first)).graph.initializers
    assert len({byte_range(value) for value in loaded.values()}) == 1
    assert (directory / "m.data").stat().st_size == WEIGHT.nbytes


def test_packed_types_and_constants_of_nodes(tmp_path: Path) -> None:
    four = np.random.default_rng(0).integers(-8, 8, (64, 64)).astype(ir.DataType.INT4.numpy())
    constant = numpy_helper.from_array(WEIGHT, "c")
    nodes = [node("Constant", [], ["c"], value=constant), node("MatMul", ["x", "c"], ["y"])]
    model = graph(nodes, {})
    value = ir.Value(name="four", const_value=ir.Tensor(four, dtype=ir.DataType.INT4))
    value.shape, value.type = ir.Shape([64, 64]), ir.TensorType(ir.DataType.INT4)
    model.graph.register_initializer(value)
    loaded = load_model(write(tmp_path, model))
    assert (tmp_path / "m.data").stat().st_size == 64 * 64 // 2
    stored = loaded.graph.initializers["four"].const_value.numpy()
    np.testing.assert_array_equal(stored.astype(np.int8), four.astype(np.int8))
    tensor = loaded.graph[0].attributes["value"].as_tensor()
    np.testing.assert_array_equal(tensor.numpy(), WEIGHT)


def test_symbolic_links_are_followed_and_hard_links_refused(tmp_path: Path) -> None:
    path = write(tmp_path, matmuls(a=WEIGHT))
    data = tmp_path / "m.data"
    blob = tmp_path / "blobs"
    blob.mkdir()
    data.rename(blob / "1234")
    data.symlink_to(blob / "1234")
    tensor = load_model(path).graph.initializers["a"].const_value
    assert Path(tensor.path) == blob / "1234"
    np.testing.assert_array_equal(tensor.numpy(), WEIGHT)
    data.unlink()
    os.link(blob / "1234", data)
    with pytest.raises(BundleError, match="hard links"):
        load_model(path)
    with pytest.raises(BundleError, match="not a readable ONNX model"):
        load_model(data)


def test_large_weights_are_no_inputs() -> None:
    model = matmuls(a=WEIGHT, b=WEIGHT + 1)
    model.ir_version = 3
    model.graph.inputs.extend(model.graph.initializers.values())
    remove_weights_from_inputs(model)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert model.ir_version == 4
    small = graph([node("Mul", ["x", "s"], ["y"])], {"s": random(WIDTH)})
    small.graph.inputs.append(small.graph.initializers["s"])
    remove_weights_from_inputs(small)
    assert [value.name for value in small.graph.inputs] == ["x", "s"]


def test_uncached_tensors_read_the_same(tmp_path: Path) -> None:
    model = load_model(write(tmp_path, matmuls(a=WEIGHT)))
    read_uncached(model)
    tensor = model.graph.initializers["a"].const_value
    assert isinstance(tensor, UncachedTensor)
    np.testing.assert_array_equal(tensor.numpy(), WEIGHT)
    assert not np.shares_memory(tensor.numpy(), tensor.numpy())


def test_weights_whose_file_is_cut_short_or_missing_are_found_first(tmp_path: Path) -> None:
    path = write(tmp_path, matmuls(a=WEIGHT))
    data = tmp_path / "m.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"m.data: 16,383 bytes, but tensor a ends at 16,384"):
        load_model(path)
    data.unlink()
    with pytest.raises(BundleError, match=r"m.data: external data of m.onnx is missing"):
        load_model(path)
