"""Look up rows of a computed table: what is computed for each element, or for each row on its own,
is computed for the rows that are looked up.
"""

from collections.abc import Callable, Mapping

import onnx_ir as ir

from edgetie.graph.matching import operator
from edgetie.graph.nodes import Nodes, sizes_of
from edgetie.passes.table_operators.reader import (
    ALONG_ROWS,
    CannotMoveError,
    TableReader,
    require,
    swaps_axes,
    type_of,
)

_ELEMENTWISE = {
    "Abs", "Add", "And", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp",
    "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf",
    "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul",
    "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign",
    "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Where",
    "Xor",
}  # fmt: skip
"""Operators that compute each element from those at the same place, with broadcasting."""


class LookUps(TableReader):
    """Look-ups in computed tables."""

    def __init__(self, nodes: Nodes, weights: Mapping[ir.Value, frozenset[ir.Value]]) -> None:
        super().__init__(nodes, weights)
        self._rows: dict[tuple[ir.Value, ir.Value, int], ir.Value] = {}

    def look_up(self, table: ir.Value, ids: ir.Value, axis: int) -> ir.Value:
        key = table, ids, axis
        if key not in self._rows:
            self._rows[key] = self._look_up(*key)
        return self._rows[key]

    def _look_up(self, table: ir.Value, ids: ir.Value, axis: int) -> ir.Value:
        extents = self._extents(table)
        if extents[axis] == 1:
            return self._vector(table)
        if extents[1 - axis] == 1:
            return self._gather(self._vector(table, column=True), ids)
        node = table.producer()
        if node is None:
            return self._gather(table if axis == 0 else self.nodes.transpose(table), ids)
        op_type = operator(node)
        source = self._same_layout(table)
        if source is not None:
            return self.look_up(source, ids, axis)
        if op_type in _ELEMENTWISE or self._works_along_rows(node, axis):
            attributes, indices = dict(node.attributes), range(len(node.inputs))
            if op_type in ALONG_ROWS:
                attributes["axis"] = ir.AttrInt64("axis", -1)
                first = self.look_up(self._input(node), ids, axis)
                inputs = [first, *(self._row(node, i, extents[1]) for i in indices[1:])]
            else:
                inputs = [
                    self.look_up(self._operand(node, i), ids, axis) if node.inputs[i] else None
                    for i in indices
                ]
            result = self.nodes.op(op_type, inputs, attributes, domain=node.domain)
            return self._typed(result, table, ids, extents[1 - axis])
        rules: Mapping[str, Callable[[ir.Node, ir.Value, ir.Value, int], ir.Value]] = {
            "Transpose": self._look_up_transpose,
            "Slice": self._look_up_slice,
            "Split": self._look_up_slice,
            "Gather": self._look_up_gather,
            "Concat": self._look_up_concat,
            "Pad": self._look_up_pad,
            "ScatterElements": self._look_up_scatter,
            "ScatterND": self._look_up_scatter,
            "MatMul": self._look_up_product,
        }
        if op_type not in rules:
            raise CannotMoveError(f"{op_type} before a look-up")
        return rules[op_type](node, table, ids, axis)

    def _look_up_transpose(
        self, node: ir.Node, table: ir.Value, ids: ir.Value, axis: int
    ) -> ir.Value:
        require(swaps_axes(node), "Transpose of other axes before a look-up")
        return self.look_up(self._input(node), ids, 1 - axis)

    def _look_up_slice(self, node: ir.Node, table: ir.Value, ids: ir.Value, axis: int) -> ir.Value:
        part = self._slices(node, table)
        source, count = self._input(node), len(part[axis])
        if part[axis] != range(self._extents(source)[axis]):
            ids = self._binary("Mod", ids, count, ids)  # ids below zero count from the end
            ids = self._binary("Mul", ids, part[axis].step, ids)
            ids = self._binary("Add", ids, part[axis].start, ids)
        rows = self.look_up(source, ids, axis)
        return self._slice(rows, part[1 - axis], self._extents(source)[1 - axis])

    def _look_up_gather(self, node: ir.Node, table: ir.Value, ids: ir.Value, axis: int) -> ir.Value:
        own_axis, selected = self._gathered(node)
        source = self._input(node)
        if own_axis == axis:
            sizes = sizes_of(ids)
            ids = self.nodes.typed("Gather", selected, ids, sizes=sizes, dtype=selected.dtype)
            return self.look_up(source, ids, axis)
        return self._select(self.look_up(source, ids, axis), selected)

    def _look_up_concat(self, node: ir.Node, table: ir.Value, ids: ir.Value, axis: int) -> ir.Value:
        own_axis = self._axis(node)
        parts = [value for value in node.inputs if value is not None]
        if own_axis != axis:
            columns = [self.look_up(part, ids, axis) for part in parts]
            result = self.nodes.op("Concat", columns, {"axis": -1})
            return self._typed(result, table, ids, self._extents(table)[1 - axis])
        ids = self._binary("Mod", ids, self._extents(table)[axis], ids)
        width = self._extents(table)[1 - axis]
        first, *others = parts
        rows, start = self.look_up(first, self._within(ids, 0, first, axis), axis), 0
        for part in others:
            start += self._extents(first)[axis]
            first, later = part, self.look_up(part, self._within(ids, start, part, axis), axis)
            rows = self._where(self._column(self._below(ids, start)), rows, later, ids, width)
        return rows

    def _within(self, ids: ir.Value, start: int, part: ir.Value, axis: int) -> ir.Value:
        """Return ids relative to a part of a table, and 0 instead of those of other parts."""
        own, zero = self._binary("Sub", ids, start, ids), self.nodes.number(0, type_of(ids))
        end, sizes = self._extents(part)[axis], sizes_of(ids)
        is_before, is_within = self._below(own, 0), self._below(own, end)
        own = self.nodes.typed("Where", is_before, zero, own, sizes=sizes, dtype=ids.dtype)
        return self.nodes.typed("Where", is_within, own, zero, sizes=sizes, dtype=ids.dtype)

    def _look_up_pad(self, node: ir.Node, table: ir.Value, ids: ir.Value, axis: int) -> ir.Value:
        before, after = self._padding(node)
        source, width = self._input(node), self._extents(table)[1 - axis]
        own = self._binary("Mod", ids, self._extents(table)[axis], ids)
        rows = self.look_up(source, self._within(own, before[axis], source, axis), axis)
        rows = self._pad(rows, before[1 - axis], after[1 - axis])
        zero, end = self.nodes.number(0, type_of(rows)), before[axis] + self._extents(source)[axis]
        if after[axis]:
            rows = self._where(self._column(self._below(own, end)), rows, zero, ids, width)
        if before[axis]:
            is_before = self._column(self._below(own, before[axis]))
            rows = self._where(is_before, zero, rows, ids, width)
        return rows

    def _look_up_scatter(
        self, node: ir.Node, table: ir.Value, ids: ir.Value, axis: int
    ) -> ir.Value:
        require(axis == 0, f"{operator(node)} of columns")
        flags, replacements = self._scattered(node, table)
        sizes = sizes_of(ids)
        is_replaced = self.nodes.typed("Gather", flags, ids, sizes=sizes, dtype=flags.dtype)
        own_ids = self.nodes.typed(
            "Gather", replacements, ids, sizes=sizes, dtype=replacements.dtype
        )
        rows = self.look_up(self._input(node), ids, 0)
        own = self.look_up(self._input(node, 2), own_ids, 0)
        return self._where(self._column(is_replaced), own, rows, ids, self._extents(table)[1])

    def _look_up_product(
        self, node: ir.Node, table: ir.Value, ids: ir.Value, axis: int
    ) -> ir.Value:
        left, right = self._input(node, 0), self._input(node, 1)
        if axis == 0:
            return self.multiply(self.look_up(left, ids, 0), right, 0)
        return self.multiply(self.look_up(right, ids, 1), left, 1)
