"""Offsets of blocks: what checkpoints of a scale and a minimum add to each value of a block.

A product has ``offset * sum(x)`` more for each block of activations ``x``, and a row that is looked
up has the offset more in each value. MatMulNBits and GatherBlockQuantized have no offsets, so
standard operators add them, without rounding.
"""

import onnx_ir as ir

from edgetie.graph.matching import rank
from edgetie.graph.nodes import Nodes
from edgetie.quantize.weights.affine import Array
from edgetie.quantize.weights.quantized_weight import Part, QuantizedWeight


def add_to_product(
    nodes: Nodes, weight: QuantizedWeight, x: ir.Value, product: ir.Value
) -> ir.Value:
    """Add what the offsets of a weight contribute to its product with ``x``."""
    shape = -1, weight.block_count, weight.in_channels // weight.block_count
    name = "_".join(map(str, shape[1:]))
    by_blocks = nodes("Reshape", x, nodes.integers(f"block_offsets.{name}", shape))
    sums = nodes.along("ReduceSum", by_blocks, 2, keepdims=0)
    addend = nodes("Gemm", sums, _offsets(weight), transB=1)
    return nodes("Add", product, nodes("Reshape", addend, nodes("Shape", product)))


def add_to_rows(
    nodes: Nodes, weight: QuantizedWeight, indices: ir.Value, rows: ir.Value
) -> ir.Value:
    """Add the offsets to rows ``(…, blocks, block)`` that are looked up."""
    offsets = nodes("Gather", _offsets(weight), indices, axis=0)
    return nodes("Add", rows, nodes.along("Unsqueeze", offsets, rank(indices) + 1))


def add_to_blocks(nodes: Nodes, weight: QuantizedWeight, blocks: ir.Value, copy: int) -> ir.Value:
    """Add the offsets to all blocks ``(out * blocks, block)`` of a weight."""
    shape = weight.out_channels * weight.block_count, 1

    def column() -> Array:
        return _read_offsets(weight).reshape(shape)

    return nodes(
        "Add", blocks, weight.add(Part.OFFSETS, ir.DataType.FLOAT, shape, column, copy=copy)
    )


def _offsets(weight: QuantizedWeight) -> ir.Value:
    """Return the offsets ``(out, blocks)``."""
    shape = weight.out_channels, weight.block_count
    return weight.add(Part.OFFSETS, ir.DataType.FLOAT, shape, lambda: _read_offsets(weight))


def _read_offsets(weight: QuantizedWeight) -> Array:
    offsets = weight.parameters().offsets
    assert offsets is not None
    return offsets
