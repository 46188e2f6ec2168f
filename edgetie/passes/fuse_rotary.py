"""Fuse rotary position embeddings (Su et al. 2021) into GroupQueryAttention."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import initializer, insert
from edgetie.graph.evaluation import evaluate
from edgetie.graph.matching import last_dimension, operand_orders, other_operand, producer, scalar
from edgetie.passes.base import GraphPass

_CHECKED_POSITIONS = 7
_COSINE_TOLERANCE = 1e-6
_MOST_ROWS = 1 << 18  # of tables, which a session holds: 64 MB with heads of 64 channels


@dataclass(frozen=True)
class _Rotation:
    """``x`` rotated by ``cos`` and ``sin``, both ``(batch, sequence, 2 * half)``."""

    x: ir.Value
    cos: ir.Value
    sin: ir.Value


class FuseRotary(GraphPass):
    """Moves rotary embeddings into the GroupQueryAttention nodes that follow them.

    Their tables of cosines and sines are not stored. ONNX Runtime computes them when a session
    starts, by a copy of what computes the angles in the model, over ``Range(0, max_positions)``.

    Args:
        max_positions: number of table rows: the longest sequence that the model accepts.
    """

    def __init__(self, max_positions: int | None) -> None:
        super().__init__()
        self.max_positions = max_positions
        self._tables: dict[tuple[str, str], tuple[ir.Value, ir.Value] | str] = {}

    def rewrite(self, model: ir.Model) -> None:
        for node in list(model.graph):
            if node.op_type == "GroupQueryAttention":
                self._fuse(model.graph, node)

    def _fuse(self, graph: ir.Graph, attention: ir.Node) -> None:
        query, key = (_head_transpose(value) for value in attention.inputs[:2])
        if query is None or key is None:
            return
        q, k = _match_rotation(query.inputs[0]), _match_rotation(key.inputs[0])
        if q is None and k is None:
            return  # no rotation: learned positions, or a layer without positions
        size = last_dimension(q.x) if q else None
        if q is None or k is None or q.cos is not k.cos or q.sin is not k.sin or size is None:
            self.skipped.append(f"{attention.name}: queries and keys are not rotated alike")
            return
        positions = self.max_positions
        if size % 16 or positions is None or positions > _MOST_ROWS:
            why = "no longest sequence in the configuration"
            if size % 16:
                why = f"head size {size}"
            elif positions is not None:
                why = f"tables of {positions} positions are too large"
            self.skipped.append(f"{attention.name}: {why}")
            return
        names = (str(q.cos.name), str(q.sin.name))
        if names not in self._tables:
            self._tables[names] = self._add_tables(graph, q, positions)
        tables = self._tables[names]
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

    def _add_tables(
        self, graph: ir.Graph, rotation: _Rotation, count: int
    ) -> tuple[ir.Value, ir.Value] | str:
        """Add tables ``(count, half)`` of cosines and sines, or return why that is impossible."""
        first = graph[0]
        tables = []
        for value, kind in ((rotation.cos, "cos"), (rotation.sin, "sin")):
            width = last_dimension(value)
            if width is None or width % 16:
                return f"rotates {width} channels of a head, not a multiple of 16"
            angles = _extract_angles(graph, value)
            if angles is None:
                return "angles that depend on more than the position"
            objection = _objection(angles, count, width)
            if objection is not None:
                return objection
            name = f"rotary.{kind}.{len(self._tables)}"
            nodes = _table_nodes(graph, angles, count, width // 2, name)
            insert(first, *nodes)
            tables.append(nodes[-1].outputs[0])
        return tables[0], tables[1]


def _head_transpose(value: ir.Value | None) -> ir.Node | None:
    """Return the Transpose in ``Reshape(Transpose(x))``, which joins the heads of a token."""
    reshape = producer(value, "Reshape")
    return producer(reshape.inputs[0], "Transpose") if reshape else None


def _match_rotation(value: ir.Value | None) -> _Rotation | None:
    """Match ``x * cos + rotate_half(x) * sin`` on whole heads or on their first channels."""
    rotation = _match_whole_heads(value)
    if rotation is not None:
        return rotation
    concat = producer(value, "Concat")
    if concat is None or len(concat.inputs) != 2:
        return None
    rotation, rest = _match_whole_heads(concat.inputs[0]), producer(concat.inputs[1], "Slice")
    first = producer(rotation.x, "Slice") if rotation else None
    if rotation is None or rest is None or first is None:
        return None
    source, width = first.inputs[0], last_dimension(rotation.x)
    if source is None or source is not rest.inputs[0]:
        return None
    if scalar(first.inputs[1]) != 0 or scalar(rest.inputs[1]) != width:
        return None
    return _Rotation(source, rotation.cos, rotation.sin)


def _match_whole_heads(value: ir.Value | None) -> _Rotation | None:
    add = producer(value, "Add")
    for cos_term, sin_term in operand_orders(add) if add else ():
        left, right = producer(cos_term, "Mul"), producer(sin_term, "Mul")
        for half, sin in operand_orders(right) if left and right else ():
            x = _rotate_half(half)
            if left is None or x is None or x not in left.inputs:
                continue
            cos, sin = _without_head_axis(other_operand(left, x)), _without_head_axis(sin)
            if cos is not None and sin is not None:
                return _Rotation(x, cos, sin)
    return None


def _rotate_half(value: ir.Value | None) -> ir.Value | None:
    """Return the ``x`` of ``concat(-x[half:], x[:half])``."""
    concat = producer(value, "Concat")
    negative = producer(concat.inputs[0], "Neg") if concat and len(concat.inputs) == 2 else None
    if concat is None or negative is None:
        return None
    second, first = producer(negative.inputs[0], "Slice"), producer(concat.inputs[1], "Slice")
    if first is None or second is None or first.inputs[0] is not second.inputs[0]:
        return None
    x = first.inputs[0]
    size = last_dimension(x) if x is not None else None
    if x is None or size is None or size % 2:
        return None
    half = size // 2
    end = scalar(second.inputs[2])
    limits = scalar(first.inputs[1]), scalar(first.inputs[2]), scalar(second.inputs[1])
    return x if limits == (0, half, half) and end is not None and end >= size else None


def _without_head_axis(value: ir.Value | None) -> ir.Value | None:
    """Return ``cos`` of ``Unsqueeze(cos, 1)``."""
    unsqueeze = producer(value, "Unsqueeze")
    if unsqueeze is None or scalar(unsqueeze.inputs[1]) != 1:
        return None
    return unsqueeze.inputs[0]


def _is_positions(value: ir.Value) -> bool:
    """Whether a value is ``start + Range(0, sequence)``, as the exporter's wrapper computes it."""
    add = producer(value, "Add")
    if add is None or value.dtype != ir.DataType.INT64:
        return False
    operands = [(producer(x, "Unsqueeze"), x) for x in add.inputs]
    return any(producer(u.inputs[0] if u else x, "Range") for u, x in operands)


def _extract_angles(graph: ir.Graph, value: ir.Value) -> ir.Graph | None:
    """Extract what computes ``value`` from the positions, if it depends on nothing else."""
    positions = [output for node in graph for output in node.outputs if _is_positions(output)]
    try:
        angles = ir.convenience.extract(graph, positions, [value])
    except ValueError:
        return None
    for node in angles:
        for output in node.outputs:
            output.shape = None
    return angles if any(positions.uses() for positions in angles.inputs) else None


def _table_nodes(
    graph: ir.Graph, angles: ir.Graph, count: int, half: int, name: str
) -> list[ir.Node]:
    """Build ``angles[0, :, :half]`` for ``count`` positions, to be inserted into ``graph``."""

    def constant(label: str, array: Any) -> ir.Value:
        return initializer(graph, f"rotary.{label}", np.array(array, np.int64))

    tape = ir.tape.Tape()
    limits = constant("start", 0), constant("max_positions", count), constant("one", 1)
    positions = tape.op("Unsqueeze", [tape.op("Range", limits), constant("axis", [0])])
    angle_nodes, output = list(angles), angles.outputs[0]
    suffix = f".table{output.name}"
    for value in angles.inputs:
        ir.convenience.replace_all_uses_with(value, positions)
    for value in angles.initializers.values():
        ir.convenience.replace_all_uses_with(value, graph.initializers[str(value.name)])
    angles.outputs.clear()
    angles.remove(angle_nodes)
    for node in angle_nodes:
        node.name = f"{node.name}{suffix}"
        for value in node.outputs:
            value.name = f"{value.name}{suffix}"
    tail = ir.tape.Tape()
    ends = constant("zero", [0]), constant(f"half.{half}", [half]), constant("last_axis", [2])
    first_half = tail.op("Slice", [output, *ends])
    table = tail.op("Squeeze", [first_half, constant("zero", [0])], name=name)
    table.name = name
    return [*tape.nodes, *angle_nodes, *tail.nodes]


def _objection(angles: ir.Graph, count: int, width: int) -> str | None:
    """Return why there can be no table of these angles, judged by a few positions.

    Models of long contexts may choose their angles by the longest (LongRoPE, Ding et al. 2024).
    """
    few = range(min(_CHECKED_POSITIONS, count))
    alone = _compute_angles(angles, few)
    with_last = _compute_angles(angles, [*few, count - 1])
    if with_last.ndim != 3 or not np.allclose(
        alone, with_last[:, :-1], rtol=0, atol=_COSINE_TOLERANCE
    ):
        return "angles that depend on more than the position"
    half = width // 2
    if alone.shape != (1, len(few), width) or (alone[..., :half] != alone[..., half:]).any():
        return "angles whose two halves differ"
    return None


def _compute_angles(angles: ir.Graph, positions: Sequence[int]) -> np.ndarray[Any, Any]:
    for value in angles.inputs:
        value.shape = ir.Shape((1, len(positions)))
    array = np.array([positions], np.int64)
    return evaluate(angles, {str(value.name): array for value in angles.inputs})[0]
