"""Rotary position embedding (Su et al. 2021) inside GroupQueryAttention.

The operator rotates queries and keys itself, given tables of cosines and sines by position. The
tables are not stored: they stay a small constant expression over ``Range(0, max_positions)``, which
ONNX Runtime folds when a session starts. What computes the angles in the model is that expression
(plain, YaRN, scaled: it does not matter), so the pass copies it and puts all positions in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import initializer, insert
from edgetie.graph.matching import last_dimension, producer, scalar
from edgetie.passes.base import GraphPass

_CHECKED_POSITIONS = 7  # positions compared when a table's two halves must be equal
_SAME = 1e-6  # between cosines


@dataclass(frozen=True)
class _Rotated:
    """``x`` rotated by ``cos`` and ``sin``, both ``(batch, sequence, 2 * half)``."""

    x: ir.Value
    cos: ir.Value
    sin: ir.Value


class FuseRotary(GraphPass):
    """Moves rotary embeddings into the GroupQueryAttention nodes that follow them.

    Args:
        max_positions: rows of the tables: the longest sequence the model takes.
    """

    name = "rotary"

    def __init__(self, max_positions: int | None) -> None:
        super().__init__()
        self.max_positions = max_positions
        self._tables: dict[tuple[str, str], tuple[ir.Value, ir.Value] | str] = {}

    def rewrite(self, model: ir.Model) -> None:
        for node in list(model.graph):
            if node.op_type == "GroupQueryAttention":
                self._at(model, node)

    def _at(self, model: ir.Model, attention: ir.Node) -> None:
        query, key = _flattened(attention.inputs[0]), _flattened(attention.inputs[1])
        if query is None or key is None:
            return
        q, k = _match(query.inputs[0]), _match(key.inputs[0])
        if q is None and k is None:
            return  # no rotation: learned positions, or a layer without
        size = last_dimension(q.x) if q else None
        if q is None or k is None or q.cos is not k.cos or q.sin is not k.sin or size is None:
            self.skipped.append(f"{attention.name}: queries and keys are not rotated alike")
            return
        if size % 16 or self.max_positions is None:
            why = f"head size {size}" if size % 16 else "no longest sequence in the configuration"
            self.skipped.append(f"{attention.name}: {why}")
            return
        cache_key = (str(q.cos.name), str(q.sin.name))
        if cache_key not in self._tables:
            self._tables[cache_key] = self._make_tables(model, q)
        tables = self._tables[cache_key]
        if isinstance(tables, str):
            self.skipped.append(f"{attention.name}: {tables}")
            return
        query.replace_input_with(0, q.x)
        key.replace_input_with(0, k.x)
        attention.resize_inputs(max(len(attention.inputs), 9))
        attention.replace_input_with(7, tables[0])
        attention.replace_input_with(8, tables[1])
        attention.attributes["do_rotary"] = ir.AttrInt64("do_rotary", 1)
        self.changed += 1

    def _make_tables(self, model: ir.Model, rotated: _Rotated) -> tuple[ir.Value, ir.Value] | str:
        """Tables ``(max_positions, half)`` of cosines and sines, at the start of the graph; or why
        there can be none.
        """
        assert self.max_positions is not None
        first = model.graph[0]
        made = []
        for value, kind in ((rotated.cos, "cos"), (rotated.sin, "sin")):
            nodes = _position_expression(value)
            width = last_dimension(value)
            if width is None or width % 16:
                return f"rotates {width} channels of a head, no multiple of 16"
            if nodes is None or not _by_position(nodes, value, self.max_positions):
                return "angles that depend on more than the position"
            if not _halves_equal(nodes, value, width):
                return "angles whose two halves differ"
            copies, table = _over_all_positions(model.graph, nodes, value, self.max_positions)
            name = f"rotary.{kind}.{len(self._tables)}"
            copies += _half(model.graph, table, width // 2, name)
            insert(first, *copies)
            made.append(copies[-1].outputs[0])
        return made[0], made[1]


def _flattened(value: ir.Value | None) -> ir.Node | None:
    """The Transpose in ``Reshape(Transpose(x))``: heads next to each other."""
    reshape = producer(value, "Reshape")
    return producer(reshape.inputs[0], "Transpose") if reshape else None


def _match(value: ir.Value | None) -> _Rotated | None:
    """Recognise ``x * cos + rotate_half(x) * sin``, on all of the head or its first part."""
    whole = _match_whole(value)
    if whole is not None:
        return whole
    join = producer(value, "Concat")
    if join is None or len(join.inputs) != 2:
        return None
    part, rest = _match_whole(join.inputs[0]), producer(join.inputs[1], "Slice")
    if part is None or rest is None:
        return None
    first = producer(part.x, "Slice")
    width = last_dimension(part.x)
    if first is None or first.inputs[0] is not rest.inputs[0]:
        return None
    if scalar(first.inputs[1]) != 0 or scalar(rest.inputs[1]) != width:
        return None
    source = first.inputs[0]
    assert source is not None
    return _Rotated(source, part.cos, part.sin)


def _match_whole(value: ir.Value | None) -> _Rotated | None:
    add = producer(value, "Add")
    if add is None:
        return None
    for straight, turned in (add.inputs, reversed(add.inputs)):
        left, right = producer(straight, "Mul"), producer(turned, "Mul")
        if left is None or right is None:
            continue
        for half, sin in (right.inputs, tuple(reversed(right.inputs))):
            x = _rotate_half(half)
            if x is None or x not in left.inputs:
                continue
            cos = left.inputs[1] if left.inputs[0] is x else left.inputs[0]
            cos3, sin3 = _without_head_axis(cos), _without_head_axis(sin)
            if cos3 is not None and sin3 is not None:
                return _Rotated(x, cos3, sin3)
    return None


def _rotate_half(value: ir.Value | None) -> ir.Value | None:
    """The ``x`` of ``concat(-x[half:], x[:half])``."""
    join = producer(value, "Concat")
    negative = producer(join.inputs[0], "Neg") if join and len(join.inputs) == 2 else None
    if join is None or negative is None:
        return None
    second, first = producer(negative.inputs[0], "Slice"), producer(join.inputs[1], "Slice")
    if first is None or second is None or first.inputs[0] is not second.inputs[0]:
        return None
    x = first.inputs[0]
    size = last_dimension(x) if x is not None else None
    if x is None or size is None or size % 2:
        return None
    half = size // 2
    end = scalar(second.inputs[2])
    bounds = scalar(first.inputs[1]), scalar(first.inputs[2]), scalar(second.inputs[1])
    return x if bounds == (0, half, half) and end is not None and end >= size else None


def _without_head_axis(value: ir.Value | None) -> ir.Value | None:
    """``cos`` of ``Unsqueeze(cos, 1)``, and of a cast of it."""
    unsqueeze = producer(value, "Unsqueeze")
    if unsqueeze is None or scalar(unsqueeze.inputs[1]) != 1:
        return None
    return unsqueeze.inputs[0]


def _is_positions(value: ir.Value) -> bool:
    """``start + Range(0, sequence)``: the positions that the exporter's wrapper computes."""
    add = producer(value, "Add")
    if add is None or value.dtype != ir.DataType.INT64:
        return False
    return any(
        producer(p.inputs[0] if (p := producer(x, "Unsqueeze")) else x, "Range") for x in add.inputs
    )


def _position_expression(value: ir.Value) -> list[ir.Node] | None:
    """The nodes between the positions and ``value``, if it depends on nothing else."""
    nodes: dict[ir.Node, None] = {}
    reached = False

    def visit(current: ir.Value | None) -> bool:
        nonlocal reached
        if current is None or current.const_value is not None:
            return True
        if _is_positions(current):
            reached = True
            return True
        node = current.producer()
        if node is None:
            return False
        if node in nodes:
            return True
        if not all(visit(x) for x in node.inputs):
            return False
        nodes[node] = None  # after its inputs: topological order
        return True

    return list(nodes) if visit(value) and reached else None


def _copy(
    nodes: list[ir.Node], output: ir.Value, positions: ir.Value, suffix: str
) -> tuple[list[ir.Node], ir.Value]:
    """Copies of ``nodes`` that start from ``positions``, and the copy of ``output``."""
    mapping: dict[ir.Value, ir.Value] = {}
    copies = []
    for node in nodes:
        inputs = [
            None if x is None else positions if _is_positions(x) else mapping.get(x, x)
            for x in node.inputs
        ]
        copy = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=f"{node.name}{suffix}",
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.type = f"{old.name}{suffix}", old.type
            mapping[old] = new
        copies.append(copy)
    return copies, mapping[output]


def _over_all_positions(
    graph: ir.Graph, nodes: list[ir.Node], output: ir.Value, count: int
) -> tuple[list[ir.Node], ir.Value]:
    def number(name: str, n: int) -> ir.Value:
        return initializer(graph, name, np.array(n, np.int64))

    everywhere = ir.node(
        "Range",
        [number("rotary.start", 0), number("rotary.max_positions", count), number("rotary.one", 1)],
    )
    rows = ir.node(
        "Unsqueeze", [everywhere.outputs[0], initializer(graph, "rotary.axis", np.array([0]))]
    )
    copies, table = _copy(nodes, output, rows.outputs[0], f".table{output.name}")
    return [everywhere, rows, *copies], table


def _half(graph: ir.Graph, table: ir.Value, half: int, name: str) -> list[ir.Node]:
    """``table[0, :, :half]`` of a table ``(1, positions, 2 * half)``."""

    def vector(label: str, *numbers: int) -> ir.Value:
        return initializer(graph, f"rotary.{label}", np.array(numbers, np.int64))

    cut = ir.node(
        "Slice",
        [table, vector("zero", 0), vector(f"half.{half}", half), vector("last_axis", 2)],
    )
    flat = ir.node("Squeeze", [cut.outputs[0], vector("zero", 0)], name=name)
    flat.outputs[0].name = name
    return [cut, flat]


def _halves_equal(nodes: list[ir.Node], output: ir.Value, width: int) -> bool:
    """Whether both halves of the last axis are the same, computed for a few positions."""
    table = _rows(nodes, output, range(_CHECKED_POSITIONS))
    half = width // 2
    return table.shape == (1, _CHECKED_POSITIONS, width) and bool(
        np.array_equal(table[..., :half], table[..., half:])
    )


def _by_position(nodes: list[ir.Node], output: ir.Value, count: int) -> bool:
    """Whether the rows of the first few positions stay the same where the last one is there too:
    models of long contexts may choose their angles by the longest (LongRoPE, Ding et al. 2024).
    """
    few = range(min(_CHECKED_POSITIONS, count))
    alone, with_last = (_rows(nodes, output, chosen) for chosen in (few, [*few, count - 1]))
    return with_last.ndim == 3 and np.allclose(alone, with_last[:, :-1], rtol=0, atol=_SAME)


def _rows(nodes: list[ir.Node], output: ir.Value, chosen: Sequence[int]) -> np.ndarray[Any, Any]:
    """``output`` at the chosen positions."""
    from edgetie.graph.evaluation import evaluate

    positions = ir.Value(
        name="positions", shape=ir.Shape((1, len(chosen))), type=ir.TensorType(ir.DataType.INT64)
    )
    copies, result = _copy(nodes, output, positions, "")
    return evaluate(copies, positions, result, np.array([chosen], np.int64))
