"""Multiply with a computed table: a product passes what is linear in the table. A factor of rows,
numbers and other operators on rows follow it, a factor of columns precedes it.
"""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from edgetie.graph.matching import operator
from edgetie.passes.table_operators.reader import (
    NORMALIZATIONS,
    CannotMoveError,
    TableReader,
    require,
    swaps_axes,
    type_of,
)
from edgetie.passes.table_operators.row_statistics import row_statistics

_FEW = 4  # rows fewer than one in so many are looked up, not computed with all others


class Products(TableReader):
    """Products with computed tables."""

    def multiply(self, x: ir.Value, table: ir.Value, axis: int) -> ir.Value:
        extents = self._extents(table)
        if extents[axis] == 1:
            return self.nodes("Mul", self._total(x), self._vector(table))
        if extents[1 - axis] == 1:
            return self._total(self.nodes("Mul", x, self._vector(table)))
        node = table.producer()
        if node is None:
            right = table if axis == 0 else self.nodes.transpose(table)
            return self.nodes("MatMul", x, right)
        op_type = operator(node)
        source = self._same_layout(table)
        if source is not None:
            return self.multiply(x, source, axis)
        rules: Mapping[str, Callable[[ir.Value, ir.Node, ir.Value, int], ir.Value]] = {
            "Neg": self._multiply_negative,
            "Cast": self._multiply_cast,
            "Mul": self._multiply_factor,
            "Div": self._multiply_factor,
            "Add": self._multiply_sum,
            "Sub": self._multiply_sum,
            "Where": self._multiply_where,
            "Transpose": self._multiply_transpose,
            "Slice": self._multiply_slice,
            "Split": self._multiply_slice,
            "Gather": self._multiply_gather,
            "Concat": self._multiply_concat,
            "Pad": self._multiply_pad,
            "ScatterElements": self._multiply_scatter,
            "ScatterND": self._multiply_scatter,
            "MatMul": self._multiply_product,
            **dict.fromkeys(NORMALIZATIONS, self._multiply_normalization),
        }
        if op_type not in rules:
            raise CannotMoveError(f"{op_type} before a product")
        return rules[op_type](x, node, table, axis)

    def _total(self, x: ir.Value) -> ir.Value:
        """Sum over the last axis, which stays."""
        return self.nodes.along("ReduceSum", x, -1, keepdims=1)

    def _multiply_negative(
        self, x: ir.Value, node: ir.Node, table: ir.Value, axis: int
    ) -> ir.Value:
        return self.nodes("Neg", self.multiply(x, self._input(node), axis))

    def _multiply_cast(self, x: ir.Value, node: ir.Node, table: ir.Value, axis: int) -> ir.Value:
        source = self._input(node)
        result = self.multiply(self.nodes.cast(x, type_of(source)), source, axis)
        return self.nodes.cast(result, type_of(table))

    def _multiply_factor(self, x: ir.Value, node: ir.Node, table: ir.Value, axis: int) -> ir.Value:
        """A factor of columns multiplies ``x``, one of rows or a number the product."""
        left, right = self._operand(node, 0), self._operand(node, 1)
        if operator(node) == "Mul" and 1 in self._extents(left):
            left, right = right, left
        extents = self._extents(right)
        require(1 in extents, f"{operator(node)} of two tables before a product")
        factor = self._vector(right)
        if extents[axis] == 1:
            return self.nodes(operator(node), self.multiply(x, left, axis), factor)
        scaled = self.nodes(operator(node), x, factor)
        return self._widen(self.multiply(scaled, left, axis), self._extents(table)[1 - axis])

    def _multiply_sum(self, x: ir.Value, node: ir.Node, table: ir.Value, axis: int) -> ir.Value:
        left, right = (self.multiply(x, self._operand(node, i), axis) for i in (0, 1))
        return self.nodes(operator(node), left, right)

    def _multiply_where(self, x: ir.Value, node: ir.Node, table: ir.Value, axis: int) -> ir.Value:
        """A mask of rows chooses between products, one of columns between parts of ``x``."""
        mask = self._operand(node, 0)
        require(1 in self._extents(mask), "Where with a mask of all elements before a product")
        flags, (left, right) = self._vector(mask), (self._operand(node, i) for i in (1, 2))
        if self._extents(mask)[axis] == 1:
            products = (self.multiply(x, operand, axis) for operand in (left, right))
            return self.nodes("Where", flags, *products)
        zero = self.nodes.number(0, type_of(x))
        first, second = self.nodes("Where", flags, x, zero), self.nodes("Where", flags, zero, x)
        return self.nodes(
            "Add", self.multiply(first, left, axis), self.multiply(second, right, axis)
        )

    def _multiply_transpose(
        self, x: ir.Value, node: ir.Node, table: ir.Value, axis: int
    ) -> ir.Value:
        require(swaps_axes(node), "Transpose of other axes before a product")
        return self.multiply(x, self._input(node), 1 - axis)

    def _multiply_slice(self, x: ir.Value, node: ir.Node, table: ir.Value, axis: int) -> ir.Value:
        part, source = self._slices(node, table), self._input(node)
        all_summed, all_kept = (self._extents(source)[each] for each in (axis, 1 - axis))
        summed, kept = part[axis], part[1 - axis]
        if summed != range(all_summed):
            require(summed.step == 1, "Slice of every other column before a product")
            x = self._pad(x, summed.start, all_summed - summed.stop)
        if len(kept) * _FEW < all_kept:
            ids = np.array(kept, np.int64)
            name = f"{table.name}.rows"
            return self._multiply_rows(x, source, self.nodes.constant(name, ids, np.int64), axis)
        return self._slice(self.multiply(x, source, axis), kept, all_kept)

    def _multiply_gather(self, x: ir.Value, node: ir.Node, table: ir.Value, axis: int) -> ir.Value:
        own_axis, selected = self._gathered(node)
        source = self._input(node)
        require(own_axis != axis, "Gather of columns before a product")
        count = self._extents(table)[own_axis]
        if count * _FEW < self._extents(source)[own_axis]:
            return self._multiply_rows(x, source, selected, axis)
        return self._select(self.multiply(x, source, axis), selected)

    def _multiply_rows(self, x: ir.Value, table: ir.Value, ids: ir.Value, axis: int) -> ir.Value:
        """Multiply with a few rows, which are looked up."""
        return self.nodes("MatMul", x, self.nodes.transpose(self.look_up(table, ids, 1 - axis)))

    def _multiply_concat(self, x: ir.Value, node: ir.Node, table: ir.Value, axis: int) -> ir.Value:
        parts = [value for value in node.inputs if value is not None]
        if self._axis(node) != axis:
            products = (
                self._widen(self.multiply(x, part, axis), self._extents(part)[1 - axis])
                for part in parts
            )
            return self.nodes("Concat", *products, axis=-1)
        start, total = 0, None
        for part in parts:
            own = range(start, start + self._extents(part)[axis])
            piece = self._slice(x, own, self._extents(table)[axis])
            product, start = self.multiply(piece, part, axis), own.stop
            total = product if total is None else self.nodes("Add", total, product)
        assert total is not None
        return total

    def _multiply_pad(self, x: ir.Value, node: ir.Node, table: ir.Value, axis: int) -> ir.Value:
        before, after = self._padding(node)
        extent = self._extents(table)[axis]
        x = self._slice(x, range(before[axis], extent - after[axis]), extent)
        return self._pad(
            self.multiply(x, self._input(node), axis), before[1 - axis], after[1 - axis]
        )

    def _multiply_scatter(self, x: ir.Value, node: ir.Node, table: ir.Value, axis: int) -> ir.Value:
        require(axis == 1, f"{operator(node)} of columns")
        flags, replacements = self._scattered(node, table)
        result = self.multiply(x, self._input(node), 1)
        own = self._select(self.multiply(x, self._input(node, 2), 1), replacements)
        return self.nodes("Where", flags, own, result)

    def _multiply_product(self, x: ir.Value, node: ir.Node, table: ir.Value, axis: int) -> ir.Value:
        """``x (A B)`` is ``(x A) B``, and ``x (A B)ᵀ`` is ``(x Bᵀ) Aᵀ``."""
        first, second = self._input(node, axis), self._input(node, 1 - axis)
        return self.multiply(self.multiply(x, first, axis), second, axis)

    def _multiply_normalization(
        self, x: ir.Value, node: ir.Node, table: ir.Value, axis: int
    ) -> ir.Value:
        """Normalized rows are rows minus a number, times a number, with a gain of columns."""
        require(axis == 1 and self._works_along_rows(node, 0), f"{operator(node)} of columns")
        source, columns = self._input(node), self._extents(table)[1]
        gain, bias = (self._row(node, index, columns) for index in (1, 2))
        scaled = x if gain is None else self.nodes("Mul", x, gain)
        means, factors = row_statistics(node, self._tensor(source))
        result = self.multiply(scaled, source, 1)
        if means is not None:
            means_of_rows = self.nodes.tensor(f"{table.name}.means", means)
            result = self.nodes(
                "Sub", result, self.nodes("Mul", self._total(scaled), means_of_rows)
            )
        result = self.nodes("Mul", result, self.nodes.tensor(f"{table.name}.factors", factors))
        return result if bias is None else self.nodes("Add", result, self.multiply(x, bias, 1))
