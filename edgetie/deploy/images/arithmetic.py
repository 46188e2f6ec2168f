"""Write arithmetic in Python and get the nodes of a graph."""

from __future__ import annotations

from typing import TypeAlias

import onnx_ir as ir

from edgetie.graph.nodes import Nodes

_INTEGER, _REAL = ir.DataType.INT64, ir.DataType.DOUBLE


class Number:
    """An integer (int64) or a real number (double) that a graph computes, or a tensor of them.

    Operators add nodes. They compute what Python computes with integers that are not negative, and
    with floats.
    """

    def __init__(self, nodes: Nodes, value: ir.Value) -> None:
        """Wrap a value of the graph that ``nodes`` belong to."""
        self.nodes, self.value = nodes, value

    def __add__(self, other: Term) -> Number:
        return self._with("Add", other)

    def __sub__(self, other: Term) -> Number:
        return self._with("Sub", other)

    def __mul__(self, other: Term) -> Number:
        return self._with("Mul", other)

    def __floordiv__(self, other: Term) -> Number:
        return self._with("Div", other)

    def __mod__(self, other: int) -> Number:
        return self._with("Mod", other)

    def __truediv__(self, other: Term) -> Number:
        return self.real()._with("Div", other)

    def __rtruediv__(self, other: int) -> Number:
        return self._new("Div", self.nodes.number(other, _REAL), self.real().value)

    def __gt__(self, other: Term) -> Number:
        return self._with("Greater", other)

    def __lt__(self, other: Term) -> Number:
        return self._with("Less", other)

    def equals(self, other: Term) -> Number:
        return self._with("Equal", other)

    def maximum(self, other: Term) -> Number:
        return self._with("Max", other)

    def minimum(self, other: Term) -> Number:
        return self._with("Min", other)

    def select(self, yes: Term, no: Term) -> Number:
        """Choose one of two integers by this condition."""
        return self._new("Where", self.value, self._term(yes, _INTEGER), self._term(no, _INTEGER))

    def real(self) -> Number:
        return Number(self.nodes, self.nodes.cast(self.value, _REAL))

    def truncate(self) -> Number:
        """Round towards zero, as Python's ``int`` does."""
        return Number(self.nodes, self.nodes.cast(self.value, _INTEGER))

    def floor(self) -> Number:
        return self._new("Floor", self.value).truncate()

    def ceil(self) -> Number:
        return self._new("Ceil", self.value).truncate()

    def round(self) -> Number:
        """Round to the nearest integer, halves to even ones."""
        return self._new("Round", self.value).truncate()

    def map(self, op_type: str) -> Number:
        """Apply an operator such as ``Sqrt``."""
        return self._new(op_type, self.value)

    def along(self, axis: int) -> Number:
        """Insert an axis of size 1."""
        return Number(self.nodes, self.nodes.along("Unsqueeze", self.value, axis))

    def _with(self, op_type: str, other: Term) -> Number:
        """Apply an operator of two numbers; one of them real makes both real."""
        is_real = isinstance(other, float) or (
            isinstance(other, Number) and other.value.dtype == _REAL
        )
        own = self.real() if is_real else self
        assert own.value.dtype is not None
        return self._new(op_type, own.value, self._term(other, own.value.dtype))

    def _term(self, term: Term, dtype: ir.DataType) -> ir.Value:
        if isinstance(term, Number):
            return self.nodes.cast(term.value, dtype)
        return self.nodes.number(term, dtype)

    def _new(self, op_type: str, *inputs: ir.Value) -> Number:
        return Number(self.nodes, self.nodes(op_type, *inputs))


Term: TypeAlias = "Number | int | float"


def concatenate(nodes: Nodes, *terms: Term) -> ir.Value:
    """Return a vector of integers, such as a shape."""
    vectors = [
        nodes.integers(f"integers.{term}", [term])
        if not isinstance(term, Number)
        else nodes.along("Unsqueeze", term.value, 0)
        for term in terms
    ]
    return nodes("Concat", *vectors, axis=0)


def integers_below(count: Number) -> Number:
    """Return the vector of the integers from 0 up to ``count``."""
    nodes = count.nodes
    first, step = (nodes.integers(f"scalar.{each}", each) for each in (0, 1))
    return Number(nodes, nodes("Range", first, count.value, step))
