"""Weight-only in the packed layout: MatMulNBits and GatherBlockQuantized of ONNX Runtime.

Both operators read uint8 codes ``(rows, blocks, bytes of a block)`` as they are, so a table used by
both is one initializer. A 2-D table with a Reshape for one of its users, as other tools write it,
is folded into a second copy when ONNX Runtime starts.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgetie.graph.constants import MICROSOFT
from edgetie.graph.editing import initializer
from edgetie.quantize.formats.weight_format import NodeBuilder, QuantizedWeight, WeightFormat
from edgetie.quantize.weights.affine import Array, QuantSpec, choose_block
from edgetie.targets import BLOCK_SIZES

_ACCURACY_LEVEL = 4  # activations to int8 inside the kernel; other levels unpack the whole weight
_BLOCK = {8: 64, 4: 32}
_COUNTED_SPLIT = 18  # the opset from which on Split counts its parts and ReduceMax reads its axes
_TINY = 1e-30  # in the place of zero, of blocks that are all zeros


class MatMulNBitsFormat(WeightFormat):
    """8 or 4 bits with a scale and a zero point for each block.

    Zero points cost a byte for each block and nothing at run time, as products read unsigned codes
    in any case, and take a fifth from the error of 8 bits.

    Args:
        bits: of a code.
        block: columns that share a scale, fewer where that pads less; ``None`` for 64 of 8 bits
            and 32 of 4.
        aliased: give lookup and product entries of their own over the same bytes.
    """

    opset = 11  # Round

    def __init__(self, bits: int = 8, block: int | None = None, *, aliased: bool = False) -> None:
        super().__init__()
        self.bits, self.aliased = bits, aliased
        self.block = block or _BLOCK[bits]

    def spec(self, columns: int) -> QuantSpec:
        block = choose_block(columns, self.block)
        return QuantSpec(self.bits, block, asymmetric=True, clip=self.bits < 8)

    def higher_precision(self) -> WeightFormat | None:
        """8 bits in the place of 4, then the smallest blocks: an eighth more bytes, almost half the
        error.
        """
        if self.bits < 8:
            return MatMulNBitsFormat(8)
        smallest = min(BLOCK_SIZES)
        return MatMulNBitsFormat(8, smallest) if self.block > smallest else None

    def store(self, matrix: QuantizedWeight) -> None:
        shape = (matrix.rows, matrix.blocks, _width(matrix))

        def codes() -> Array:
            found = matrix.take_codes()
            packed = found if self.bits == 8 else found[:, ::2] | found[:, 1::2] << 4
            return packed.reshape(shape)

        matrix.codes = matrix.initializer("int8", ir.DataType.UINT8, shape, codes)

    def lookup(self, matrix: QuantizedWeight, ids: ir.Value, rank: int) -> NodeBuilder:
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
        if matrix.spec.asymmetric:
            inputs.append(self._lookup_zeros(matrix, flat=flat_table))
        nodes = NodeBuilder(matrix.graph)
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

    def product(
        self, matrix: QuantizedWeight, x: ir.Value, bias: ir.Value | None, *, exact: bool
    ) -> NodeBuilder:
        """MatMulNBits; where activations must hardly be rounded, of two parts of them at once."""
        nodes = NodeBuilder(matrix.graph)
        rank = len(x.shape) if x.shape is not None else 0
        padded = matrix.blocks * _block(matrix) != matrix.columns
        parts = exact and rank > 1 and not padded
        inputs: list[ir.Value | None] = [
            _in_two(nodes, x, rank, matrix) if parts else x,
            matrix.codes,
            _scales(matrix),
        ]
        if matrix.spec.asymmetric:
            inputs.append(_zeros(matrix))
        result = nodes(
            "MatMulNBits",
            *inputs,
            domain=MICROSOFT,
            K=matrix.columns,
            N=matrix.rows,
            bits=self.bits,
            block_size=_block(matrix),
            accuracy_level=_ACCURACY_LEVEL,
        )
        if parts:
            halves = ir.node("Split", [result], {"axis": rank - 2}, num_outputs=2)
            if matrix.graph.opset_imports.get("", 1) >= _COUNTED_SPLIT:
                halves.attributes["num_outputs"] = ir.AttrInt64("num_outputs", 2)
            nodes.append(halves)
            result = nodes("Add", *halves.outputs)
        if bias is not None:  # ONNX Runtime's CPU provider takes it in; others' kernels cannot
            nodes("Add", result, bias)
        return nodes

    def _alias(self, matrix: QuantizedWeight, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """The bytes of ``value`` under another name and shape."""
        suffix = f"{str(value.name).removeprefix(f'{matrix.label}.')}.lookup"
        tensor = value.const_value
        assert tensor is not None
        made = matrix.initializer(
            suffix, tensor.dtype, shape, lambda: tensor.numpy().reshape(shape)
        )
        self.aliases[str(made.name)] = str(value.name)
        return made

    def _lookup_zeros(self, matrix: QuantizedWeight, *, flat: bool) -> ir.Value:
        """Zero points as lookups read them: like the scales; those of 4 bits each in a byte."""
        if flat:
            return _zeros(matrix)
        shape = (matrix.rows, matrix.blocks, 1)
        if self.bits == 8:
            return self._alias(matrix, _zeros(matrix), shape)

        def make() -> Array:
            zeros = matrix.small().zeros
            assert zeros is not None
            return zeros.reshape(shape)

        return matrix.initializer("zeros.lookup", ir.DataType.UINT8, shape, make)


def _in_two(nodes: NodeBuilder, x: ir.Value, rank: int, matrix: QuantizedWeight) -> ir.Value:
    """``x`` as rows that MatMulNBits rounds to themselves, and behind them what is left of it.

    The operator rounds activations to int8 by blocks, to steps of the largest magnitude over 127.
    What is already a multiple of the step stays as it is; the rest is 254 times smaller, and so is
    the error of rounding it.
    """
    blocks = [0] * (rank - 1) + [matrix.blocks, _block(matrix)]
    cut = nodes("Reshape", x, _ints(matrix, f"blocks.{rank}.{matrix.columns}", blocks))
    magnitudes = nodes("Abs", cut)
    last = _ints(matrix, "last", [-1])
    if matrix.graph.opset_imports.get("", 1) >= _COUNTED_SPLIT:
        peak = nodes("ReduceMax", magnitudes, last, keepdims=1)
    else:
        peak = nodes("ReduceMax", magnitudes, axes=[-1], keepdims=1)
    step = nodes("Mul", peak, _number(matrix, "step", 1 / 127))
    step = nodes("Max", step, _number(matrix, "tiny", _TINY))
    coarse = nodes("Mul", nodes("Round", nodes("Div", cut, step)), step)
    whole = [0] * (rank - 1) + [matrix.columns]
    flat = nodes("Reshape", coarse, _ints(matrix, f"whole.{rank}.{matrix.columns}", whole))
    return nodes("Concat", flat, nodes("Sub", x, flat), axis=rank - 2)


def _block(matrix: QuantizedWeight) -> int:
    assert matrix.spec.block is not None
    return matrix.spec.block


def _width(matrix: QuantizedWeight) -> int:
    """Bytes of a block."""
    return _block(matrix) * matrix.spec.bits // 8


def _scales(matrix: QuantizedWeight) -> ir.Value:
    shape = (matrix.rows, matrix.blocks)
    return matrix.initializer("scales", ir.DataType.FLOAT, shape, lambda: matrix.small().scales)


def _zeros(matrix: QuantizedWeight) -> ir.Value:
    """Zero points; those of 4 bits two in a byte, each row filled up."""
    count, whole = matrix.blocks, matrix.spec.bits == 8

    def make() -> Array:
        zeros = matrix.small().zeros
        assert zeros is not None
        if whole:
            return zeros
        even = np.pad(zeros, [(0, 0), (0, count % 2)])
        return np.asarray(even[:, ::2] | even[:, 1::2] << 4)

    shape = matrix.rows, count if whole else -(-count // 2)
    return matrix.initializer("zeros", ir.DataType.UINT8, shape, make)


def _ints(matrix: QuantizedWeight, label: str, numbers: list[int]) -> ir.Value:
    return initializer(matrix.graph, f"packed.{label}", np.array(numbers, np.int64))


def _number(matrix: QuantizedWeight, label: str, number: float) -> ir.Value:
    return initializer(matrix.graph, f"packed.{label}", np.array(number, np.float32))
