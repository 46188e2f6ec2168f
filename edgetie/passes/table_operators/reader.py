"""What look-ups and products with a computed table have in common."""

from abc import ABC, abstractmethod

import numpy as np
import onnx_ir as ir

from edgetie.graph.constant_values import ConstantValues, constant_tensor, static_shape
from edgetie.graph.editing import transformed
from edgetie.graph.matching import attribute_ints, constant, operator, producer, rank
from edgetie.graph.nodes import Nodes

NORMALIZATIONS = {
    "LayerNormalization", "LpNormalization", "RMSNormalization", "SimplifiedLayerNormalization",
}  # fmt: skip
ALONG_ROWS = NORMALIZATIONS | {"Softmax", "LogSoftmax"}
"""Operators that compute each row from itself, if their axis is the last."""

SAME_LAYOUT = ("Expand", "Identity", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that may leave rows and columns as they are."""

Pair = tuple[int, int]


class CannotMoveError(Exception):
    """An operator cannot move past a use; the message says which and why."""


class TableReader(ABC):
    """Nodes that read a table: a matrix that is computed from weights.

    Args:
        nodes: gets the new nodes.
        weights: constant values and tables, and the weights that they are computed from.
    """

    def __init__(self, nodes: Nodes, weights: ConstantValues) -> None:
        self.nodes, self.weights = nodes, weights

    @abstractmethod
    def look_up(self, table: ir.Value, ids: ir.Value, axis: int) -> ir.Value:
        """Return rows of a table (axis 0) or its columns (axis 1): ``(*ids, other axis)``.

        What is the same for all rows is returned as a vector.

        Raises:
            CannotMoveError: if an operator before the look-up is not computed row by row.
        """

    @abstractmethod
    def multiply(self, x: ir.Value, table: ir.Value, axis: int) -> ir.Value:
        """Return the products of ``x`` ``(…, n)`` with a table, summed over one of its axes: the
        table itself on the right (axis 0), or its transpose (axis 1).

        Raises:
            CannotMoveError: if an operator before the product is not linear.
        """

    def _input(self, node: ir.Node, index: int = 0) -> ir.Value:
        value = node.inputs[index]
        assert value is not None
        return value

    def _same_layout(self, table: ir.Value) -> ir.Value | None:
        """Return what a table is a view of, with the same rows and columns."""
        extents, value = self._extents(table), table
        while (view := producer(value, *SAME_LAYOUT)) is not None:
            value = self._input(view)
            shape = static_shape(value) or ()
            while len(shape) > 2 and shape[0] == 1:
                shape = shape[1:]
            if shape == extents:
                return value
        return None

    def _operand(self, node: ir.Node, index: int) -> ir.Value:
        """Return an operand that is broadcast, without the repetition of its entries."""
        value = self._input(node, index)
        while (expand := producer(value, "Expand")) is not None:
            value = self._input(expand)
        filled = producer(value, "ConstantOfShape")
        if filled is None:
            return value
        tensor = filled.attributes.get("value")
        number = tensor.as_tensor().numpy().item() if tensor is not None else 0
        return self.nodes.number(number, type_of(value))

    def _row(self, node: ir.Node, index: int, width: int) -> ir.Value | None:
        """Return an optional operand that is the same for all rows, as a vector."""
        if len(node.inputs) <= index or node.inputs[index] is None:
            return None
        value = self._operand(node, index)
        require(self._extents(value)[0] == 1, f"{operator(node)} with other operands for each row")
        if self._extents(value)[1] == width:
            return self._vector(value)
        array = np.full(width, self._tensor(value).numpy().item())
        return self.nodes.constant(f"{value.name}.{width}", array, type_of(value).numpy())

    def _extents(self, value: ir.Value) -> Pair:
        """Return the number of rows and columns that a constant value is broadcast from."""
        shape = static_shape(value)
        if shape is None:
            raise CannotMoveError(f"{value.name} of unknown shape")
        while len(shape) > 2 and shape[0] == 1:
            shape = shape[1:]
        require(len(shape) < 3, f"{value.name} of {len(shape)} axes")
        rows, columns = (1,) * (2 - len(shape)) + shape
        return rows, columns

    def _tensor(self, value: ir.Value) -> ir.TensorProtocol:
        tensor = constant_tensor(value, self.weights.get(value, ()))
        if tensor is None:
            raise CannotMoveError(f"{value.name} cannot be computed")
        return tensor

    def _vector(self, value: ir.Value, *, column: bool = False) -> ir.Value:
        """Return a value with one axis longer than 1 as a vector or column, or as a scalar."""
        extents = self._extents(value)
        require(1 in extents, f"{value.name} is no vector")
        if value not in self.weights:  # an activation
            sizes = [] if max(extents) == 1 else [max(extents), 1][: 1 + column]
            target = self.nodes.integers(f"vector.{'_'.join(map(str, sizes))}", sizes)
            return self.nodes("Reshape", value, target)
        tensor = self._tensor(value)
        shape = () if tensor.size == 1 else (tensor.size, 1) if column else (tensor.size,)
        if value.is_initializer() and tuple(tensor.shape.numpy()) == shape:
            return value
        vector = transformed(tensor, lambda array: array.reshape(shape), shape)
        return self.nodes.tensor(f"{value.name}.{'column' if column else 'vector'}", vector)

    def _with_number(self, op_type: str, x: ir.Value, number: int) -> ir.Value:
        return self.nodes(op_type, x, self.nodes.number(number, type_of(x)))

    def _widen(self, x: ir.Value, width: int) -> ir.Value:
        """Repeat the only entry of the last axis."""
        if width == 1 or x.shape is None or x.shape[-1] != 1:
            return x
        ones = self.nodes.constant(f"ones.{width}", np.ones(width), type_of(x).numpy())
        return self.nodes("Mul", x, ones)

    def _select(self, x: ir.Value, ids: ir.Value) -> ir.Value:
        """Select entries of the last axis."""
        return self.nodes("Gather", x, ids, axis=-1)

    def _slice(self, x: ir.Value, part: range, total: int) -> ir.Value:
        """Slice the last axis of ``total`` entries."""
        if part == range(total):
            return x
        end = part.stop if part.stop >= 0 else -total - 1
        inputs = [
            self.nodes.integers(f"slice.{number}", [number])
            for number in (part.start, end, -1, part.step)
        ]
        return self.nodes("Slice", x, *inputs)

    def _pad(self, x: ir.Value, before: int, after: int) -> ir.Value:
        """Add zeros to the last axis."""
        if not before and not after:
            return x
        axes = rank(x)
        require(axes > 0, "zeros for an activation of unknown rank")
        pads = [0] * (axes - 1) + [before] + [0] * (axes - 1) + [after]
        return self.nodes("Pad", x, self.nodes.integers(f"pads.{axes}.{before}.{after}", pads))

    def _works_along_rows(self, node: ir.Node, axis: int) -> bool:
        """Whether a node computes each row from itself: its axis is the last."""
        default = 0 if operator(node) == "Hardmax" else -1
        own = node.attributes.get_int("axis", default) % max(1, rank(node.outputs[0]))
        return operator(node) in ALONG_ROWS and axis == 0 and own == rank(node.outputs[0]) - 1

    def _axis(self, node: ir.Node, axis: int | None = None) -> int:
        """Return what an axis of a node means, by default that of its attribute: 0 for the rows of
        the table that it reads, 1 for the columns.
        """
        axes = rank(self._input(node))
        require(axes > 0, f"{operator(node)} of unknown axes")
        own = node.attributes.get_int("axis", 0) if axis is None else axis
        index = own % axes - axes + 2
        require(index >= 0, f"{operator(node)} of other axes")
        return index

    def _slices(self, node: ir.Node, table: ir.Value) -> tuple[range, range]:
        """Return the rows and columns that a Slice or an output of a Split consists of."""
        source = self._input(node)
        parts = dict(enumerate(map(range, self._extents(source))))
        if operator(node) == "Split":
            axis, start = self._axis(node), 0
            for output in node.outputs[: list(node.outputs).index(table)]:
                start += self._extents(output)[axis]
            parts[axis] = range(start, start + self._extents(table)[axis])
            return parts[0], parts[1]
        limits = [constant(value) for value in node.inputs[1:]]
        starts, ends = limits[:2] if len(limits) > 1 else (None, None)
        if starts is None or ends is None:
            raise CannotMoveError("Slice with attributes")
        own_axes = limits[2] if len(limits) > 2 else np.arange(len(starts))
        steps = limits[3] if len(limits) > 3 else np.ones(len(starts), int)
        assert own_axes is not None
        assert steps is not None
        for start, end, axis, step in zip(starts, ends, own_axes, steps, strict=True):
            index = self._axis(node, int(axis))
            parts[index] = parts[index][slice(int(start), int(end), int(step))]
        return parts[0], parts[1]

    def _gathered(self, node: ir.Node) -> tuple[int, ir.Value]:
        """Return the axis and the constant ids of a Gather from a table."""
        ids = self._input(node, 1)
        require(rank(ids) == 1, "Gather of another shape")
        return self._axis(node), ids

    def _scattered(self, node: ir.Node, table: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return flags of the rows that a ScatterND or ScatterElements replaces, and which of its
        rows replaces each: constants ``(rows,)``.
        """
        ids = self._tensor(self._input(node, 1)).numpy()
        is_plain = node.attributes.get_string("reduction", "none") == "none"
        width = 1 if operator(node) == "ScatterND" else self._extents(table)[1]
        has_rows = ids.ndim == 2 and ids.shape[1] == width and (ids == ids[:, :1]).all()
        axis = node.attributes.get_int("axis", 0)
        is_by_rows = is_plain and has_rows and rank(table) == 2 and axis == 0
        require(is_by_rows, f"{operator(node)} of other than rows")
        flags, sources = (np.zeros(self._extents(table)[0], dtype) for dtype in (bool, np.int64))
        flags[ids[:, 0]], sources[ids[:, 0]] = True, np.arange(len(ids))
        return (
            self.nodes.constant(f"{table.name}.replaced", flags, bool),
            self.nodes.constant(f"{table.name}.replacements", sources, np.int64),
        )

    def _padding(self, node: ir.Node) -> tuple[Pair, Pair]:
        """Return how many rows and columns of zeros a Pad adds before and after a table."""
        pads = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        value = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
        is_plain = (
            mode == "constant" and len(node.inputs) < 4 and (value is None or not value.any())
        )
        if pads is None or not is_plain or (pads < 0).any():
            raise CannotMoveError("Pad with other values than zeros")
        axes = len(pads) // 2
        before, after = pads[:axes], pads[axes:]
        require(not before[:-2].any() and not after[:-2].any(), "Pad of other axes")
        return (int(before[-2]), int(before[-1])), (int(after[-2]), int(after[-1]))


def swaps_axes(transpose: ir.Node) -> bool:
    """Whether a Transpose of a matrix, perhaps after axes of size 1, swaps its axes."""
    axes = rank(transpose.outputs[0])
    order = attribute_ints(transpose, "perm")
    return axes > 1 and (order or [*range(axes)][::-1]) == [*range(axes - 2), axes - 1, axes - 2]


def require(condition: bool, reason: str) -> None:
    """Raise a :class:`CannotMoveError` unless a condition holds."""
    if not condition:
        raise CannotMoveError(reason)


def type_of(value: ir.Value) -> ir.DataType:
    """Return the type of a value, which must be known."""
    if value.dtype is None:
        raise CannotMoveError(f"{value.name} of unknown type")
    return value.dtype
