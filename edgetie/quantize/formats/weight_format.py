"""How a rounded matrix is stored, looked up in and multiplied with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import initializer
from edgetie.quantize.weights.affine import (
    Array,
    QuantizedValues,
    QuantSpec,
    require_finite,
    round_to_nearest,
)
from edgetie.quantize.weights.gptq import CORES, gptq_quantize

_THREADS = ThreadPoolExecutor(CORES)
_AHEAD = 64 << 20  # bytes of float weights that are rounded before they are wanted


class QuantizedWeight:
    """A weight ``(rows, columns)``, one row an output channel or a token, to be stored rounded.

    Codes and scales are made together, when the first of them is read. Scales and zero points are
    kept, codes until they are read: a writer takes one after the other.

    Attributes:
        graph: that its initializers are registered in.
        name: of the float weight.
        label: what names of its initializers begin with.
        grid: how it is rounded.
        turned: whether the float weight is ``(columns, rows)``.
        multiplied: whether a product reads it, here or in another model; lookups may besides.
        uses: by how many nodes it is read here, at least.
        codes: the initializer of its codes.
        parts: all its initializers.
    """

    codes: ir.Value

    def __init__(
        self,
        graph: ir.Graph,
        name: str,
        label: str,
        shape: tuple[int, int],
        spec: QuantSpec,
        read: Callable[[], Array],
        turned: bool,
        hessian: Callable[[], Array] | None,
        *,
        multiplied: bool = True,
        uses: int = 1,
    ) -> None:
        self.graph, self.name, self.label, self.spec = graph, name, label, spec
        self.parts: list[ir.Value] = []
        self.rows, self.columns = shape
        self.multiplied, self.uses = multiplied, uses
        self._read, self.turned, self._gram = read, turned, hessian
        self._following: Sequence[QuantizedWeight] = ()
        self._coming: Future[QuantizedValues] | None = None
        self._made: QuantizedValues | None = None

    @property
    def blocks(self) -> int:
        return self.spec.count(self.columns)

    def take_codes(self) -> Array:
        """Codes ``(rows, columns)``, forgotten here."""
        made = self._made if self._made is not None and self._made.codes.size else self._await()
        self._made = QuantizedValues(np.empty(0, np.uint8), made.scales, made.zeros)
        return made.codes

    def small(self) -> QuantizedValues:
        """Scales and zero points; codes only if nobody has taken them."""
        self._made = self._made or self._await()
        return self._made

    def _await(self) -> QuantizedValues:
        """What a thread makes, as others begin with those that are wanted next."""
        coming = self._coming or _THREADS.submit(self._round)
        for other in self._following:
            if other._made is None and other._coming is None:
                other._coming = _THREADS.submit(other._round)
        self._coming = None
        return coming.result()

    def _round(self) -> QuantizedValues:
        matrix = self._read()
        rows = matrix.T if self.turned else matrix
        require_finite(rows, self.name)
        if self._gram is None:
            return round_to_nearest(rows, self.spec)
        return gptq_quantize(matrix, self.spec, self._gram(), turned=self.turned)

    def initializer(
        self,
        suffix: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        make: Callable[[], Array],
    ) -> ir.Value:
        """An initializer of this matrix, made when it is read."""
        name = f"{self.label}.{suffix}"
        kind = dtype if dtype.bitwidth < 8 else None

        def tensor() -> ir.TensorProtocol:
            return ir.tensor(np.ascontiguousarray(make()), dtype=kind)

        part = initializer(
            self.graph, name, ir.LazyTensor(tensor, dtype=dtype, shape=ir.Shape(shape), name=name)
        )
        self.parts.append(part)
        return part

    def row_scales(self, *, lookup: bool = False, times: float = 1.0) -> ir.Value:
        """One scale for each row ``(rows,)``, or ``(rows, 1)`` to be looked up in."""
        suffix, shape = ("scales.lookup", (self.rows, 1)) if lookup else ("scales", (self.rows,))
        return self.initializer(
            suffix,
            ir.DataType.FLOAT,
            shape,
            lambda: self.small().scales.reshape(shape) * np.float32(times),
        )


def quantize_in_background(matrices: Sequence[QuantizedWeight]) -> None:
    """Round small matrices while earlier ones are."""
    for index, matrix in enumerate(matrices):
        room, following = _AHEAD, []
        for other in matrices[index + 1 : index + 1 + 2 * CORES]:
            room -= 4 * other.rows * other.columns
            if room < 0:
                break
            following.append(other)
        matrix._following = following


class NodeBuilder(list[ir.Node]):
    """Nodes one after the other; called, it adds one and returns its output."""

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__()
        self.graph = graph

    def __call__(
        self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, domain=domain)
        self.append(node)
        return node.outputs[0]

    def make_names_unique(self, prefix: str) -> None:
        """Call the values of a subgraph unlike any others, outer ones too."""
        for index, node in enumerate(self):
            for output in node.outputs:
                output.name = f"{prefix}.{index}.{output.index()}"

    def again(self, x: ir.Value) -> ir.Value:
        """``x`` as a value that only these nodes know."""
        same = self("Identity", x)
        same.shape, same.type = x.shape, x.type
        return same


class ScaleGranularity(Enum):
    """What shares a scale of rounded activations."""

    BLOCK = "block"
    TOKEN = "token"
    TENSOR = "tensor"
    NONE = "not rounded"


class WeightFormat(ABC):
    """How a rounded matrix is stored, looked up in and multiplied with."""

    activations = ScaleGranularity.BLOCK
    """How activations are rounded in front of a product."""

    supports_rotation = True
    """Whether its products may read activations that are rotated when the model runs."""

    branches = True
    """Whether ONNX Runtime takes products in subgraphs, their weights lying in the outer graph."""

    opset = 1
    """The oldest one that has the operators."""

    def __init__(self) -> None:
        self.aliases: dict[str, str] = {}
        """Initializers that share another's bytes, for the writer."""

    @abstractmethod
    def spec(self, columns: int) -> QuantSpec:
        """How a row of so many columns is rounded."""

    @abstractmethod
    def store(self, matrix: QuantizedWeight) -> None:
        """Give ``matrix`` its codes."""

    @abstractmethod
    def lookup(self, matrix: QuantizedWeight, ids: ir.Value, rank: int) -> Sequence[ir.Node]:
        """Rows of a matrix, ``ids`` having ``rank`` axes; the last node's output are the rows."""

    @abstractmethod
    def product(
        self, matrix: QuantizedWeight, x: ir.Value, bias: ir.Value | None, *, exact: bool
    ) -> Sequence[ir.Node]:
        """``x Wᵀ + bias``, the output of the last node.

        ``exact`` asks that ``x`` be hardly rounded, where that can be had.
        """

    def takes(self, x: ir.Value) -> bool:
        """Whether it multiplies with such an activation."""
        return True

    def higher_precision(self) -> WeightFormat | None:
        """A closer form, for weights that this one costs too much; ``None`` if there is none."""
        return None
