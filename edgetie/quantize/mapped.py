"""The mapped layout: int8 weights that products read where the file is mapped.

ONNX Runtime packs the constant right-hand side of a product into memory of its own when a session
starts, and reads a left-hand side as it is. So the weight stands on the left of MatMulInteger,
uint8 codes ``(rows, columns)``, and the activations, transposed, on the right: nothing is copied, a
session is ready at once, processes share the pages. A token table is looked up in, row by row, in
the same bytes.

Activations become two numbers of seven bits each, which together have the precision of fourteen,
with a scale for each token. Both parts are columns of one product, which reads the weight once.
Seven bits, because x86 processors without VNNI add pairs of products of uint8 and int8 in 16 bits:
255 · 64 · 2 still fits.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgetie.passes._base import MICROSOFT, initializer
from edgetie.quantize.forms import Form, Matrix, Nodes, Span
from edgetie.quantize.grid import Grid

LARGEST = 64
"""Of either part of an activation."""

_FINER = 128  # steps of the second part in one of the first
_TINY = 1e-30  # added to a mean of squares: tokens may be all zeros
_SMALLEST_BLOCK = 16  # of GatherBlockQuantized


class Mapped(Form):
    """8 bits with a scale for each row, read in place."""

    activations = Span.NONE  # they are hardly rounded
    opset = 18  # Split into a number of parts, ReduceMax along an input

    def __init__(self) -> None:
        super().__init__()
        self._columns: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}

    def grid(self, columns: int) -> Grid:
        return Grid()

    def takes(self, x: ir.Value) -> bool:
        return x.shape is not None and len(x.shape) > 1

    def store(self, matrix: Matrix) -> None:
        shape = (matrix.rows, matrix.columns)
        matrix.codes = matrix.initializer(
            "int8", ir.DataType.UINT8, shape, lambda: matrix.take_codes()
        )

    def lookup(self, matrix: Matrix, ids: ir.Value, rank: int) -> Nodes:
        """GatherBlockQuantized; a block that is longer than a row is the row."""
        block = max(_SMALLEST_BLOCK, 1 << (matrix.columns - 1).bit_length())
        nodes = Nodes(matrix.graph)
        nodes(
            "GatherBlockQuantized",
            *(matrix.codes, ids, matrix.row_scales(lookup=True)),
            domain=MICROSOFT,
            gather_axis=0,
            quantize_axis=1,
            block_size=block,
            bits=8,
        )
        return nodes

    def product(self, matrix: Matrix, x: ir.Value, bias: ir.Value | None, *, exact: bool) -> Nodes:
        assert x.shape is not None
        nodes = Nodes(matrix.graph)
        rank = len(x.shape)
        turn = [*range(rank - 2), rank - 1, rank - 2]
        if x not in self._columns:
            steps, in_one = self._steps(nodes, x, matrix.columns)
            self._columns[x] = _split(nodes, steps, turn), in_one
        columns, in_one = self._columns[x]
        zero = initializer(matrix.graph, "mapped.zero", np.array(128, np.uint8))
        rows = nodes("Transpose", self._sums(nodes, matrix, columns, zero), perm=turn)
        split = ir.node("Split", [rows], {"axis": rank - 2, "num_outputs": 2}, num_outputs=2)
        nodes.append(split)
        rest = nodes("Mul", split.outputs[1], _number(matrix.graph, "rest", 1 / _FINER))
        both = nodes("Add", split.outputs[0], rest)
        result = nodes("Mul", nodes("Div", both, in_one), self._scales(matrix))
        if bias is not None:
            nodes("Add", result, bias)
        return nodes

    def _steps(self, nodes: Nodes, x: ir.Value, columns: int) -> tuple[ir.Value, ir.Value]:
        """``x`` of each token in steps of which 64 hold the largest it can be, and what one is
        multiplied with for that, but for what :meth:`_scales` knows.

        No number is larger than the root of the sum of squares, which one operator divides by.
        """
        gain = np.full(columns, LARGEST / np.sqrt(columns), np.float32)
        gains = initializer(nodes.graph, f"mapped.steps.{columns}", gain)
        norm = ir.node(
            "SimplifiedLayerNormalization",
            [x, gains],
            {"axis": -1, "epsilon": _TINY},
            num_outputs=2,
        )
        nodes.append(norm)
        return norm.outputs[0], norm.outputs[1]

    def _scales(self, matrix: Matrix) -> ir.Value:
        return matrix.row_scales(times=float(np.sqrt(matrix.columns)) / LARGEST)

    def _sums(self, nodes: Nodes, matrix: Matrix, columns: ir.Value, zero: ir.Value) -> ir.Value:
        """The integer product, as floats."""
        one = _number(matrix.graph, "one", 1)
        inputs = (matrix.codes, columns, one, one, zero)
        return nodes("MatMulIntegerToFloat", *inputs, domain=MICROSOFT)


def _number(graph: ir.Graph, name: str, number: float) -> ir.Value:
    return initializer(graph, f"mapped.{name}", np.array(number, np.float32))


def _split(nodes: Nodes, steps: ir.Value, turn: list[int]) -> ir.Value:
    """The two parts of ``(…, tokens, K)`` as columns ``(…, K, 2 tokens)``, int8."""
    graph = nodes.graph
    rest = nodes("Sub", steps, nodes("Round", steps))
    fine = nodes("Mul", rest, _number(graph, "finer", _FINER))
    rows = nodes("Concat", steps, fine, axis=len(turn) - 2)
    whole = initializer(graph, "mapped.whole", np.array(0, np.int8))
    codes = nodes("QuantizeLinear", rows, _number(graph, "one", 1), whole)
    return nodes("Transpose", codes, perm=turn)
