"""Weight-only int8 in the packed layout: MatMulNBits and GatherBlockQuantized.

Both operators read uint8 codes ``(rows, blocks, block)`` as they are, so a table used by both is
one initializer. A 2-D table with a Reshape for one of its users, as other tools write it, is folded
into a second copy when ONNX Runtime starts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.content import MIN_ELEMENTS
from edgetie.passes._base import (
    MICROSOFT,
    GraphPass,
    initializer,
    insert,
    last_dimension,
    only_user,
    producer,
    replace,
    weight,
)
from edgetie.quantize.blockwise import block_codes, block_scales, choose_block
from edgetie.quantize.compensate import compensated
from edgetie.quantize.rotate import PREFIX
from edgetie.quantize.short_list import LENGTH, candidates, corrected

_ACCURACY_LEVEL = 4  # activations to int8 inside the kernel; other levels unpack the whole weight


@dataclass(frozen=True)
class _Matrix:
    """A weight ``(rows, columns)``, one row an output channel or a token, and how it is stored."""

    name: str
    rows: int
    columns: int
    block: int
    codes: ir.Value
    scales: ir.Value

    @property
    def blocks(self) -> int:
        return -(-self.columns // self.block)


class _Rounded:
    """Codes and scales of one matrix, made together when the first of them is read.

    The scales are kept until they are read as well: they are small, and written behind the codes.
    """

    def __init__(
        self,
        matrix: Callable[[], np.ndarray[Any, Any]],
        block: int,
        name: str,
        gram: np.ndarray[Any, Any] | None,
    ) -> None:
        self._matrix, self._block, self._name, self._gram = matrix, block, name, gram
        self._scales: np.ndarray[Any, Any] | None = None

    def codes(self) -> ir.TensorProtocol:
        codes, self._scales = self._round()
        return ir.tensor(codes)

    def scales(self) -> ir.TensorProtocol:
        scales = self._scales if self._scales is not None else self._round()[1]
        return ir.tensor(scales)

    def _round(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        rows = self._matrix()
        scales = block_scales(rows, self._block, self._name)
        if self._gram is None:
            return block_codes(rows, scales, self._block), scales
        return compensated(rows, self._block, self._gram)


class WeightOnly(GraphPass):
    """Replaces MatMul and Gather over fp32 matrices; shared matrices first, and once.

    Args:
        aliased: give lookup and product entries of their own over the same bytes.
        grams: how the inputs of a matrix vary together, by its name; what it says is rounded with
            its errors compensated (:mod:`edgetie.quantize.compensate`), the rest to nearest.

    Attributes:
        aliases: initializers that share another's bytes, for the writer.
        blocks: how many matrices have which block size.
    """

    name = "weight_only_int8"

    def __init__(self, aliased: bool, grams: Mapping[str, np.ndarray[Any, Any]]) -> None:
        super().__init__()
        self.aliased = aliased
        self.grams = grams
        self.aliases: dict[str, str] = {}
        self.blocks: dict[str, int] = {}
        self._matrices: dict[str, _Matrix] = {}

    def rewrite(self, model: ir.Model) -> None:
        graph = model.graph
        values = [v for v in graph.initializers.values() if _is_matrix(v)]
        values.sort(key=lambda value: len(value.uses()) < 2)  # the tied ones first
        for value in values:
            if not _is_read_both_ways(value):
                for node, index in list(value.uses()):
                    self._use(graph, value, node, index)
        self.blocks = dict(Counter(str(m.block) for m in self._matrices.values()))
        self._take_over_names(graph, values)
        for value in values:
            if value.uses():
                users = ", ".join(sorted({node.op_type for node, _ in value.uses()}))
                self.skipped.append(f"{value.name}: used by {users}")

    def _take_over_names(self, graph: ir.Graph, values: list[ir.Value]) -> None:
        """Codes carry the name of the weight they replace: a tie group stays the same by name."""
        replaced = {str(value.name) for value in values if not value.uses()}
        for matrix in self._matrices.values():
            if matrix.name not in replaced or matrix.name not in graph.initializers:
                continue
            graph.initializers.pop(matrix.name)
            old = str(graph.initializers.pop(str(matrix.codes.name)).name)
            matrix.codes.name = matrix.name
            graph.register_initializer(matrix.codes)
            graph.register_initializer(graph.initializers.pop(str(matrix.scales.name)))
            for name in [name for name, target in self.aliases.items() if target == old]:
                self.aliases[name] = matrix.name
                graph.register_initializer(graph.initializers.pop(name))  # behind its original

    def _use(self, graph: ir.Graph, value: ir.Value, node: ir.Node, index: int) -> None:
        if node.op_type == "Gather" and index == 0 and _axis(node) == 0:
            self._lookup(graph, node, self._matrix(graph, value, transposed=False))
        elif node.op_type == "MatMul" and index == 1:
            self._product(
                node, node.inputs[0], node.outputs[0], self._matrix(graph, value, transposed=True)
            )
        elif node.op_type == "MatMul" and index == 0:
            turned, back = (
                producer(node.inputs[1], "Transpose"),
                only_user(node.outputs[0], "Transpose"),
            )
            if turned is None or back is None:
                return
            matrix = self._matrix(graph, value, transposed=False)
            x, result = _unflattened(turned.inputs[0], back.outputs[0], matrix)
            self._product(node, x, result, matrix)
        elif node.op_type == "Transpose":
            for user, position in list(node.outputs[0].uses()):
                if user.op_type == "MatMul" and position == 1:
                    matrix = self._matrix(graph, value, transposed=False)
                    self._product(user, user.inputs[0], user.outputs[0], matrix)
            if not node.outputs[0].uses():
                _forget(node)

    def _matrix(self, graph: ir.Graph, value: ir.Value, *, transposed: bool) -> _Matrix:
        """Codes and scales of a weight, made once; ``transposed`` if it is stored ``(in, out)``."""
        label = f"{value.name}{'.T' if transposed else ''}"
        if label in self._matrices:
            return self._matrices[label]
        tensor, name = value.const_value, str(value.name)
        assert tensor is not None
        shape = list(tensor.shape.numpy())
        rows, columns = shape[::-1] if transposed else shape
        block = choose_block(columns)
        count = -(-columns // block)

        def matrix() -> np.ndarray[Any, Any]:
            array = tensor.numpy()
            return np.ascontiguousarray(array.T) if transposed else array

        rounded = _Rounded(matrix, block, name, self.grams.get(name))
        made = _Matrix(
            name,
            rows,
            columns,
            block,
            codes=_lazy(
                graph, f"{label}.int8", rounded.codes, ir.DataType.UINT8, (rows, count, block)
            ),
            scales=_lazy(
                graph, f"{label}.scales", rounded.scales, ir.DataType.FLOAT, (rows, count)
            ),
        )
        self._matrices[label] = made
        return made

    def _lookup(self, graph: ir.Graph, node: ir.Node, matrix: _Matrix) -> None:
        """``Gather(W, ids)``: the rows, dequantized."""
        ids, result = node.inputs[1], node.outputs[0]
        assert ids is not None
        rank = len(ids.shape) if ids.shape is not None else 2
        nodes = self._rows(graph, matrix, ids, rank, node.name)
        insert(node, *nodes)
        replace(result, nodes[-1].outputs[0])
        _forget(node)
        self.changed += 1

    def _rows(
        self, graph: ir.Graph, matrix: _Matrix, ids: ir.Value, rank: int, name: str | None = None
    ) -> list[ir.Node]:
        """Rows of a matrix: GatherBlockQuantized, then the blocks of a row side by side.

        Args:
            graph: for the constants.
            matrix: codes and scales.
            ids: which rows, of ``rank`` axes.
            rank: number of axes of ``ids``.
            name: of the node that looks up.
        """
        padded = matrix.blocks * matrix.block != matrix.columns
        flat_table = self.aliased and not padded
        if flat_table:
            table = self._alias(graph, matrix.codes, (matrix.rows, matrix.columns), "lookup")
            scales = matrix.scales
        else:
            table = matrix.codes
            scales = self._alias(graph, matrix.scales, (matrix.rows, matrix.blocks, 1), "lookup")
        found = ir.node(
            "GatherBlockQuantized",
            [table, ids, scales],
            {
                "gather_axis": 0,
                "quantize_axis": 1 if flat_table else 2,
                "block_size": matrix.block,
                "bits": 8,
            },
            domain=MICROSOFT,
            name=name,
        )
        nodes = [found]
        if flat_table:
            return nodes
        width = matrix.blocks * matrix.block
        flat = initializer(
            graph, f"lookup.{rank}.{width}", np.array([0] * rank + [width], np.int64)
        )
        nodes.append(ir.node("Reshape", [nodes[-1].outputs[0], flat]))
        if padded:
            bounds = [
                initializer(graph, f"lookup.{label}", np.array([number], np.int64))
                for label, number in (
                    ("start", 0),
                    (f"end.{matrix.columns}", matrix.columns),
                    (f"axis.{rank}", rank),
                )
            ]
            nodes.append(ir.node("Slice", [nodes[-1].outputs[0], *bounds]))
        return nodes

    def _product(
        self, node: ir.Node, x: ir.Value | None, result: ir.Value, matrix: _Matrix
    ) -> None:
        """``x Wᵀ``, with a bias behind it taken in."""
        assert x is not None
        inputs: list[ir.Value | None] = [x, matrix.codes, matrix.scales]
        bias: ir.Value | None = None
        add = only_user(result, "Add")
        if add is not None:
            added = add.inputs[1] if add.inputs[0] is result else add.inputs[0]
            tensor = weight(added)
            if tensor is not None and tuple(tensor.shape) == (matrix.rows,):
                bias = added
                inputs += [None, None, bias]
                result = add.outputs[0]
        product = ir.node(
            "MatMulNBits",
            inputs,
            {
                "K": matrix.columns,
                "N": matrix.rows,
                "bits": 8,
                "block_size": matrix.block,
                "accuracy_level": _ACCURACY_LEVEL,
            },
            domain=MICROSOFT,
            name=node.name,
        )
        made = result.producer()
        assert made is not None
        nodes = [product]
        if result.is_graph_output() and x.shape is not None and matrix.rows > 4 * LENGTH:
            nodes += self._short_list(made, product.outputs[0], x, matrix, bias)
        insert(made, *nodes)
        replace(result, nodes[-1].outputs[0])
        _forget(node)
        self.changed += 1

    def _short_list(
        self, made: ir.Node, logits: ir.Value, x: ir.Value, matrix: _Matrix, bias: ir.Value | None
    ) -> list[ir.Node]:
        """The largest of a head's logits computed again (:mod:`edgetie.quantize.short_list`)."""
        graph = made.graph
        assert isinstance(graph, ir.Graph)
        assert x.shape is not None
        found = candidates(graph, logits)
        tokens = found.outputs[1]
        rows = self._rows(graph, matrix, tokens, len(x.shape))
        return [found, *rows, *corrected(graph, logits, tokens, x, rows[-1].outputs[0], bias)]

    def _alias(
        self, graph: ir.Graph, value: ir.Value, shape: tuple[int, ...], purpose: str
    ) -> ir.Value:
        """The bytes of ``value`` under another name and shape."""
        name = f"{value.name}.{purpose}"
        if name in graph.initializers:
            return graph.initializers[name]
        tensor = value.const_value
        assert isinstance(tensor, ir.LazyTensor)
        self.aliases[name] = str(value.name)
        return _lazy(
            graph, name, lambda: ir.tensor(tensor.numpy().reshape(shape)), tensor.dtype, shape
        )


def _is_matrix(value: ir.Value) -> bool:
    tensor = weight(value)
    return (
        tensor is not None
        and tensor.dtype == ir.DataType.FLOAT
        and len(tensor.shape) == 2
        and tensor.size >= MIN_ELEMENTS
        and not str(value.name).startswith(PREFIX)
    )


def _is_read_both_ways(value: ir.Value) -> bool:
    """Whether a matrix is multiplied with as it is and transposed: blocks of its rows serve one of
    the two, so that int8 would part it. It stays in floating point.
    """
    return len({node.op_type == "MatMul" and index == 1 for node, index in value.uses()}) > 1


def _axis(node: ir.Node) -> int:
    return node.attributes["axis"].as_int() if "axis" in node.attributes else 0


def _unflattened(
    x: ir.Value | None, result: ir.Value, matrix: _Matrix
) -> tuple[ir.Value | None, ir.Value]:
    """Undo the head's ``Reshape(…, (-1, K))`` and the Reshape back, where both are there."""
    flat, restored = producer(x, "Reshape"), only_user(result, "Reshape")
    if flat is None or restored is None or flat.inputs[0] is None:
        return x, result
    inner, outer = flat.inputs[0], restored.outputs[0]
    ranks = [len(v.shape) if v.shape is not None else 0 for v in (inner, outer)]
    if ranks == [3, 3] and last_dimension(inner) == matrix.columns:
        return inner, outer
    return x, result


def _lazy(
    graph: ir.Graph, name: str, make: Any, dtype: ir.DataType, shape: tuple[int, ...]
) -> ir.Value:
    return initializer(
        graph, name, ir.LazyTensor(make, dtype=dtype, shape=ir.Shape(shape), name=name)
    )


def _forget(node: ir.Node) -> None:
    """Detach a replaced node from its inputs, so an unused weight shows as unused."""
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)
