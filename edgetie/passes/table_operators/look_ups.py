"""Look up rows of a computed table: what is computed for each element, or for each row on its own,
is computed for the rows that are looked up.
"""

from collections.abc import Callable, Mapping

import onnx_ir as ir

from edgetie.graph.constant_values import ConstantValues
from edgetie.graph.matching import operator
from edgetie.graph.nodes import Nodes
from edgetie.passes.table_operators.reader import (
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

    def __init__(self, nodes: Nodes, weights: ConstantValues) -> None:
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
            return self.nodes("Gather", self._vector(table, column=True), ids)
        node = table.producer()
        if node is None:
            by_rows = table if axis == 0 else self.nodes.transpose(table)
            return self.nodes("Gather", by_rows, ids)
        source = self._same_layout(table)
        if source is not None:
            return self.look_up(source, ids, axis)
        op_type = operator(node)
        if self._works_along_rows(node, axis):
            first = self.look_up(self._input(node), ids, 0)
            others = [self._row(node, i, extents[1]) for i in range(1, len(node.inputs))]
            return self._compute(node, first, *others, axis=-1)
        if op_type in _ELEMENTWISE:
            return self._compute(
                node,
                *(
                    self.look_up(self._operand(node, i), ids, axis) if value is not None else None
                    for i, value in enumerate(node.inputs)
                ),
            )
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

    def _compute(
        self, node: ir.Node, first: ir.Value | None, *others: ir.Value | None, **attributes: int
    ) -> ir.Value:
        """Compute for rows what a node computes for the table."""
        operands, options = (first, *others), {**node.attributes, **attributes}
        result = self.nodes.op(node.op_type, operands, options, domain=node.domain)
        if result.type is None and first is not None:  # ONNX does not define the operator
            result.type, result.shape = first.type, first.shape
        return result

    def _look_up_transpose(
        self, node: ir.Node, table: ir.Value, ids: ir.Value, axis: int
    ) -> ir.Value:
        require(swaps_axes(node), "Transpose of other axes before a look-up")
        return self.look_up(self._input(node), ids, 1 - axis)

    def _look_up_slice(self, node: ir.Node, table: ir.Value, ids: ir.Value, axis: int) -> ir.Value:
        part, source = self._slices(node, table), self._input(node)
        if part[axis] != range(self._extents(source)[axis]):
            ids = self._with_number("Mod", ids, len(part[axis]))  # below zero: from the end
            ids = self._with_number("Mul", ids, part[axis].step)
            ids = self._with_number("Add", ids, part[axis].start)
        rows = self.look_up(source, ids, axis)
        return self._slice(rows, part[1 - axis], self._extents(source)[1 - axis])

    def _look_up_gather(self, node: ir.Node, table: ir.Value, ids: ir.Value, axis: int) -> ir.Value:
        own_axis, selected = self._gathered(node)
        source = self._input(node)
        if own_axis == axis:
            return self.look_up(source, self.nodes("Gather", selected, ids), axis)
        return self._select(self.look_up(source, ids, axis), selected)

    def _look_up_concat(self, node: ir.Node, table: ir.Value, ids: ir.Value, axis: int) -> ir.Value:
        parts = [value for value in node.inputs if value is not None]
        if self._axis(node) != axis:
            return self.nodes("Concat", *(self.look_up(part, ids, axis) for part in parts), axis=-1)
        ids = self._with_number("Mod", ids, self._extents(table)[axis])
        first, *others = parts
        rows, start = self.look_up(first, self._within(ids, 0, first, axis), axis), 0
        for part in others:
            start += self._extents(first)[axis]
            first, later = part, self.look_up(part, self._within(ids, start, part, axis), axis)
            rows = self.nodes("Where", self._rows_below(ids, start), rows, later)
        return rows

    def _within(self, ids: ir.Value, start: int, part: ir.Value, axis: int) -> ir.Value:
        """Return ids relative to a part of a table, and 0 instead of those of other parts."""
        zero, own = self.nodes.number(0, type_of(ids)), self._with_number("Sub", ids, start)
        is_before = self._with_number("Less", own, 0)
        is_within = self._with_number("Less", own, self._extents(part)[axis])
        own = self.nodes("Where", is_before, zero, own)
        return self.nodes("Where", is_within, own, zero)

    def _rows_below(self, ids: ir.Value, limit: int) -> ir.Value:
        """Return flags ``(*ids, 1)`` of ids below a limit."""
        return self.nodes.along("Unsqueeze", self._with_number("Less", ids, limit), -1)

    def _look_up_pad(self, node: ir.Node, table: ir.Value, ids: ir.Value, axis: int) -> ir.Value:
        before, after = self._padding(node)
        source, own = self._input(node), self._with_number("Mod", ids, self._extents(table)[axis])
        rows = self.look_up(source, self._within(own, before[axis], source, axis), axis)
        rows = self._pad(rows, before[1 - axis], after[1 - axis])
        zero = self.nodes.number(0, type_of(rows))
        if after[axis]:
            end = before[axis] + self._extents(source)[axis]
            rows = self.nodes("Where", self._rows_below(own, end), rows, zero)
        if before[axis]:
            rows = self.nodes("Where", self._rows_below(own, before[axis]), zero, rows)
        return rows

    def _look_up_scatter(
        self, node: ir.Node, table: ir.Value, ids: ir.Value, axis: int
    ) -> ir.Value:
        require(axis == 0, f"{operator(node)} of columns")
        flags, replacements = self._scattered(node, table)
        is_replaced = self.nodes.along("Unsqueeze", self.nodes("Gather", flags, ids), -1)
        own_ids = self.nodes("Gather", replacements, ids)
        rows = self.look_up(self._input(node), ids, 0)
        return self.nodes(
            "Where", is_replaced, self.look_up(self._input(node, 2), own_ids, 0), rows
        )

    def _look_up_product(
        self, node: ir.Node, table: ir.Value, ids: ir.Value, axis: int
    ) -> ir.Value:
        left, right = self._input(node, 0), self._input(node, 1)
        if axis == 0:
            return self.multiply(self.look_up(left, ids, 0), right, 0)
        return self.multiply(self.look_up(right, ids, 1), left, 1)
