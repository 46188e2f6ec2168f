"""Weight-only in the packed layout: MatMulNBits and GatherBlockQuantized of ONNX Runtime.

Both operators read uint8 codes ``(rows, blocks, bytes of a block)`` as they are, so a table used by
both is one initializer. A 2-D table with a Reshape for one of its users, as other tools write it,
is folded into a second copy when ONNX Runtime starts.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgetie.passes._base import MICROSOFT, initializer
from edgetie.quantize.grid import Array, Grid, choose_block
from edgetie.quantize.matrices import Form, Matrix, Nodes

_ACCURACY_LEVEL = 4  # activations to int8 inside the kernel; other levels unpack the whole weight
_LARGEST_BLOCK = {8: 64, 4: 32}


class Packed(Form):
    """8 or 4 bits with a scale for each block.

    Args:
        bits: of a code; of 4 bits each block has a zero point too.
        aliased: give lookup and product entries of their own over the same bytes.
    """

    def __init__(self, bits: int = 8, *, aliased: bool = False) -> None:
        super().__init__()
        self.bits, self.aliased = bits, aliased

    def grid(self, columns: int) -> Grid:
        block = choose_block(columns, _LARGEST_BLOCK[self.bits])
        return Grid(self.bits, block, asymmetric=self.bits < 8, clip=self.bits < 8)

    def store(self, matrix: Matrix) -> None:
        shape = (matrix.rows, matrix.blocks, _width(matrix))

        def codes() -> Array:
            found = matrix.take_codes()
            packed = found if self.bits == 8 else found[:, ::2] | found[:, 1::2] << 4
            return packed.reshape(shape)

        matrix.codes = matrix.initializer("int8", ir.DataType.UINT8, shape, codes)

    def lookup(self, matrix: Matrix, ids: ir.Value, rank: int) -> Nodes:
        """GatherBlockQuantized, then the blocks of a row side by side."""
        padded = matrix.blocks * _block(matrix) != matrix.columns
        flat_table = self.aliased and not padded
        inputs: list[ir.Value | None]
        if flat_table:
            flat = (matrix.rows, matrix.blocks * _width(matrix))
            table = self._alias(matrix, matrix.codes, flat)
            inputs = [table, ids, _scales(matrix)]
        else:
            small = (matrix.rows, matrix.blocks, 1)
            inputs = [matrix.codes, ids, self._alias(matrix, _scales(matrix), small)]
        if matrix.grid.asymmetric:
            inputs.append(self._lookup_zeros(matrix, flat=flat_table))
        nodes = Nodes(matrix.graph)
        rows = nodes(
            "GatherBlockQuantized",
            *inputs,
            domain=MICROSOFT,
            gather_axis=0,
            quantize_axis=1 if flat_table else 2,
            block_size=_block(matrix),
            bits=self.bits,
        )
        if flat_table:
            return nodes
        width = matrix.blocks * _block(matrix)
        rows = nodes("Reshape", rows, _ints(matrix, f"{rank}.{width}", [0] * rank + [width]))
        if padded:
            start, end = (_ints(matrix, f"column.{n}", [n]) for n in (0, matrix.columns))
            nodes("Slice", rows, start, end, _ints(matrix, f"axis.{rank}", [rank]))
        return nodes

    def product(self, matrix: Matrix, x: ir.Value, bias: ir.Value | None) -> Nodes:
        inputs: list[ir.Value | None] = [x, matrix.codes, _scales(matrix)]
        if matrix.grid.asymmetric:
            inputs.append(_zeros(matrix))
        if bias is not None:
            inputs += [None] * (5 - len(inputs)) + [bias]
        nodes = Nodes(matrix.graph)
        nodes(
            "MatMulNBits",
            *inputs,
            domain=MICROSOFT,
            K=matrix.columns,
            N=matrix.rows,
            bits=self.bits,
            block_size=_block(matrix),
            accuracy_level=_ACCURACY_LEVEL,
        )
        return nodes

    def _alias(self, matrix: Matrix, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """The bytes of ``value`` under another name and shape."""
        suffix = f"{str(value.name).removeprefix(f'{matrix.label}.')}.lookup"
        tensor = value.const_value
        assert tensor is not None
        made = matrix.initializer(
            suffix, tensor.dtype, shape, lambda: tensor.numpy().reshape(shape)
        )
        self.aliases[str(made.name)] = str(value.name)
        return made

    def _lookup_zeros(self, matrix: Matrix, *, flat: bool) -> ir.Value:
        """Zero points as lookups read them: like the scales, two in a byte along the last axis."""
        if flat:
            return _zeros(matrix)
        shape = (matrix.rows, matrix.blocks, 1)

        def make() -> Array:
            zeros = matrix.small().zeros
            assert zeros is not None
            return zeros.reshape(shape)

        return matrix.initializer("zeros.lookup", ir.DataType.UINT8, shape, make)


def _block(matrix: Matrix) -> int:
    assert matrix.grid.block is not None
    return matrix.grid.block


def _width(matrix: Matrix) -> int:
    """Bytes of a block."""
    return _block(matrix) * matrix.grid.bits // 8


def _scales(matrix: Matrix) -> ir.Value:
    shape = (matrix.rows, matrix.blocks)
    return matrix.initializer("scales", ir.DataType.FLOAT, shape, lambda: matrix.small().scales)


def _zeros(matrix: Matrix) -> ir.Value:
    """Zero points of 4 bits, two in a byte, each row filled up."""
    count = matrix.blocks

    def make() -> Array:
        zeros = matrix.small().zeros
        assert zeros is not None
        even = np.pad(zeros, [(0, 0), (0, count % 2)])
        return np.asarray(even[:, ::2] | even[:, 1::2] << 4)

    return matrix.initializer("zeros", ir.DataType.UINT8, (matrix.rows, -(-count // 2)), make)


def _ints(matrix: Matrix, label: str, numbers: list[int]) -> ir.Value:
    return initializer(matrix.graph, f"lookup.{label}", np.array(numbers, np.int64))
