"""Multiply with a computed table: a product passes what is linear in the table. A factor of rows,
numbers and other operators on rows follow it, a factor of columns precedes it.
"""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from edgetie.graph.matching import operator
from edgetie.graph.nodes import sizes_of
from edgetie.passes.table_operators.reader import (
    NORMALIZATIONS,
    CannotMoveError,
    TableReader,
    require,
    sizes_before,
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
            total = self.nodes.along("ReduceSum", x, -1, sizes=sizes_before(x, 1), keepdims=1)
            return self._mul(total, self._vector(table), extents[1 - axis])
        if extents[1 - axis] == 1:
            scaled = self._mul(x, self._vector(table))
            return self.nodes.along("ReduceSum", scaled, -1, sizes=sizes_before(x, 1), keepdims=1)
        node = table.producer()
        if node is None:
            right = table if axis == 0 else self.nodes.transpose(table)
            sizes = sizes_before(x, extents[1 - axis])
            return self.nodes.typed("MatMul", x, right, sizes=sizes, dtype=table.dtype)
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

    def _multiply_negative(
        self, x: ir.Value, node: ir.Node, table: ir.Value, axis: int
    ) -> ir.Value:
        result = self.multiply(x, self._input(node), axis)
        return self.nodes.typed("Neg", result, sizes=sizes_of(result), dtype=result.dtype)

    def _multiply_cast(self, x: ir.Value, node: ir.Node, table: ir.Value, axis: int) -> ir.Value:
        source = self._input(node)
        result = self.multiply(self._cast(x, type_of(source)), source, axis)
        return self._cast(result, type_of(table))

    def _multiply_factor(self, x: ir.Value, node: ir.Node, table: ir.Value, axis: int) -> ir.Value:
        """A factor of columns multiplies ``x``, one of rows or a number the product."""
        left, right = self._operand(node, 0), self._operand(node, 1)
        if operator(node) == "Mul" and 1 in self._extents(left):
            left, right = right, left
        extents = self._extents(right)
        require(1 in extents, f"{operator(node)} of two tables before a product")
        op_type, width = operator(node), self._extents(table)[1 - axis]
        if extents[axis] != 1:
            scaled = self._binary(op_type, x, self._vector(right), x)
            return self._widen(self.multiply(scaled, left, axis), width)
        result = self.multiply(x, left, axis)
        sizes = sizes_before(result, width)
        factor = self._vector(right)
        return self.nodes.typed(op_type, result, factor, sizes=sizes, dtype=result.dtype)

    def _multiply_sum(self, x: ir.Value, node: ir.Node, table: ir.Value, axis: int) -> ir.Value:
        left, right = (self.multiply(x, self._operand(node, i), axis) for i in (0, 1))
        sizes = sizes_before(x, self._extents(table)[1 - axis])
        return self.nodes.typed(operator(node), left, right, sizes=sizes, dtype=table.dtype)

    def _multiply_where(self, x: ir.Value, node: ir.Node, table: ir.Value, axis: int) -> ir.Value:
        """A mask of rows chooses between products, one of columns between parts of ``x``."""
        mask = self._operand(node, 0)
        require(1 in self._extents(mask), "Where with a mask of all elements before a product")
        flags, width = self._vector(mask), self._extents(table)[1 - axis]
        if self._extents(mask)[axis] == 1:
            left, right = (self.multiply(x, self._operand(node, i), axis) for i in (1, 2))
            sizes = sizes_before(x, width)
            return self.nodes.typed("Where", flags, left, right, sizes=sizes, dtype=table.dtype)
        zero, sizes = self.nodes.number(0, type_of(x)), sizes_of(x)
        first = self.nodes.typed("Where", flags, x, zero, sizes=sizes, dtype=x.dtype)
        second = self.nodes.typed("Where", flags, zero, x, sizes=sizes, dtype=x.dtype)
        left = self.multiply(first, self._operand(node, 1), axis)
        right = self.multiply(second, self._operand(node, 2), axis)
        return self.nodes.typed("Add", left, right, sizes=sizes_before(x, width), dtype=table.dtype)

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
        rows = self.nodes.transpose(self.look_up(table, ids, 1 - axis))
        sizes = sizes_of(ids)
        return self.nodes.typed(
            "MatMul", x, rows, sizes=sizes and sizes_before(x, sizes[0]), dtype=table.dtype
        )

    def _multiply_concat(self, x: ir.Value, node: ir.Node, table: ir.Value, axis: int) -> ir.Value:
        parts = [value for value in node.inputs if value is not None]
        width = self._extents(table)[1 - axis]
        if self._axis(node) != axis:
            products = [
                self._widen(self.multiply(x, part, axis), self._extents(part)[1 - axis])
                for part in parts
            ]
            result = self.nodes.op("Concat", products, {"axis": -1})
            return self._shaped(result, sizes_before(x, width), table)
        start, total = 0, None
        for part in parts:
            own = range(start, start + self._extents(part)[axis])
            piece = self._slice(x, own, self._extents(table)[axis])
            product, start = self.multiply(piece, part, axis), own.stop
            total = product if total is None else self._binary("Add", total, product, product)
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
        return self._shaped(self.nodes("Where", flags, own, result), sizes_of(result), result)

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
        scaled = x if gain is None else self._mul(x, gain)
        means, factors = row_statistics(node, self._tensor(source))
        width = self._extents(table)[0]
        result = self.multiply(scaled, source, 1)
        if means is not None:
            total = self.nodes.along("ReduceSum", scaled, -1, sizes=sizes_before(x, 1), keepdims=1)
            name = f"{table.name}.means"
            shift = self._mul(total, self.nodes.tensor(name, means), width)
            result = self._binary("Sub", result, shift, result)
        result = self._mul(result, self.nodes.tensor(f"{table.name}.factors", factors))
        if bias is None:
            return result
        return self._binary("Add", result, self.multiply(x, bias, 1), result)
