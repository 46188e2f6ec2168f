"""Weights of equal content are found, however they are arranged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import graph, node, random

from edgetie.errors import BundleError
from edgetie.graph.model_files import load_model, write_models
from edgetie.ties.equal_weights import equal_groups

TALL = random(64, 32)


def values(**arrays: np.ndarray) -> list[ir.Value]:
    return [
        ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            const_value=ir.tensor(array, name=name),
        )
        for name, array in arrays.items()
    ]


def groups(entries: list[ir.Value]) -> list[dict[str, bool]]:
    """Whether each member is transposed, by name."""
    return [{str(c.value.name): c.transposed for c in group} for group in equal_groups(entries)]


def test_copies_are_found_in_any_arrangement() -> None:
    wide = np.ascontiguousarray(TALL.T)
    entries = values(a=TALL, other=TALL + 1, b=TALL.copy(), c=wide, d=TALL.reshape(8, -1))
    assert groups(entries) == [{"a": False, "b": False, "c": True, "d": False}]
    assert groups(entries[::-1])[0] == {"a": False, "b": False, "c": True, "d": False}


@pytest.mark.parametrize("first", [0, 1])
def test_square_matrices(first: int) -> None:
    square = random(64, 64)
    pair = [square, np.ascontiguousarray(square.T)]
    entries = values(a=pair[first], b=pair[1 - first], c=pair[first].copy())
    assert groups(entries) == [{"a": False, "b": True, "c": False}]


def test_an_entry_in_another_shape_is_not_the_transpose() -> None:
    wide = np.ascontiguousarray(TALL.T)
    entries = values(table=TALL, parts=wide.reshape(4, 8, 64), head=wide)
    assert groups(entries) == [{"table": False, "head": True}]


def test_types_and_sizes_tell_weights_apart() -> None:
    zeros = np.zeros((64, 32))
    assert groups(values(a=zeros.astype(np.float32), b=zeros.astype(np.int32))) == []
    assert groups(values(a=zeros[:2], b=zeros[:2])) == [], "too small to matter"
    changed = TALL.copy()
    changed[17, 5] += 1  # no sample reads it
    assert groups(values(a=TALL, b=changed)) == []


def test_external_tensors_are_read_from_their_file(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["a", "b"], ["y"])]
    model = graph(nodes, {"a": TALL, "b": np.ascontiguousarray(TALL.T)}, output=[64, 64])
    (path,) = write_models({"m.onnx": model}, tmp_path, data="d", same={})
    loaded = list(load_model(path).graph.initializers.values())
    assert groups(loaded) == [{"a": False, "b": True}]
    alias = ir.Value(name="alias", shape=ir.Shape(TALL.shape), const_value=loaded[0].const_value)
    assert groups([loaded[0], alias]) == [], "one range of a file is one weight"
    (tmp_path / "d").write_bytes((tmp_path / "d").read_bytes()[:-4])
    with pytest.raises(BundleError, match="truncated"):
        load_model(path)
