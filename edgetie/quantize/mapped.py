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

_LARGEST = 64  # of either part of an activation
_FINER = 128  # steps of the second part in one of the first
_TINY = 1e-30  # in the place of zero, of tokens that are all zeros
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
            self._columns[x] = _split(nodes, x, turn)
        columns, scale = self._columns[x]
        zero = initializer(matrix.graph, "mapped.zero", np.array(128, np.uint8))
        rows = nodes("Transpose", self._sums(nodes, matrix, columns, zero), perm=turn)
        split = ir.node("Split", [rows], {"axis": rank - 2, "num_outputs": 2}, num_outputs=2)
        nodes.append(split)
        rest = nodes("Mul", split.outputs[1], _number(matrix.graph, "rest", 1 / _FINER))
        both = nodes("Add", split.outputs[0], rest)
        scaled = nodes("Mul", both, scale)
        result = nodes("Mul", scaled, matrix.row_scales())
        if bias is not None:
            nodes("Add", result, bias)
        return nodes

    def _sums(self, nodes: Nodes, matrix: Matrix, columns: ir.Value, zero: ir.Value) -> ir.Value:
        """The integer product, as floats."""
        one = _number(matrix.graph, "one", 1)
        inputs = (matrix.codes, columns, one, one, zero)
        return nodes("MatMulIntegerToFloat", *inputs, domain=MICROSOFT)


def _number(graph: ir.Graph, name: str, number: float) -> ir.Value:
    return initializer(graph, f"mapped.{name}", np.array(number, np.float32))


def token_peaks(nodes: Nodes, x: ir.Value) -> ir.Value:
    """The largest magnitude of each token, never zero: ``(…, 1)`` of ``(…, K)``."""
    last = initializer(nodes.graph, "mapped.last", np.array([-1], np.int64))
    peak = nodes("ReduceMax", nodes("Abs", x), last, keepdims=1)
    return nodes("Max", peak, _number(nodes.graph, "tiny", _TINY))


def _split(nodes: Nodes, x: ir.Value, turn: list[int]) -> tuple[ir.Value, ir.Value]:
    """The two parts of an activation ``(…, tokens, K)`` as columns ``(…, K, 2 tokens)``, int8, and
    the scale of the first ``(…, tokens, 1)``.
    """
    graph = nodes.graph
    peak = token_peaks(nodes, x)
    scale = nodes("Mul", peak, _number(graph, "step", 1 / _LARGEST))
    steps = nodes("Div", x, scale)
    coarse = nodes("Round", steps)
    rest = nodes("Mul", nodes("Sub", steps, coarse), _number(graph, "finer", _FINER))
    rows = nodes("Concat", coarse, nodes("Round", rest), axis=len(turn) - 2)
    return nodes("Transpose", nodes("Cast", rows, to=ir.DataType.INT8), perm=turn), scale
