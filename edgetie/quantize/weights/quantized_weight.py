"""A float weight and the initializers that replace it in a quantized graph."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from enum import Enum

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
from edgetie.sources.quantized.tensor import QuantizedTensor

_THREADS = ThreadPoolExecutor(CORES)
_PREFETCH_BYTES = 64 << 20  # bytes of float weights that are quantized before they are needed


class Part(Enum):
    """The initializers that a quantized weight can have. The value is the suffix of their name."""

    VALUES = "values"
    SCALES = "scales"
    SCALES_FOR_GATHER = "scales.gather"
    ZERO_POINTS = "zero_points"
    ZERO_POINTS_FOR_GATHER = "zero_points.gather"
    OFFSETS = "offsets"


class QuantizedWeight:
    """A weight ``(out, in)`` to be stored quantized.

    Values, scales and zero points are computed together when one of them is first needed. Values
    are released when they have been read, so they come first, as :meth:`take_name` has it.

    Args:
        graph: the graph that gets its initializers.
        value: the float weight.
        spec: how it is quantized.
        transposed: whether the float weight is ``(in, out)``.
        hessian: computes the Hessian of its inputs, for GPTQ. ``None`` to round to nearest.
        in_linear_op: whether a linear operator reads it, here or in another model.
        uses: the number of nodes that read it here.
        stored: its values, scales and zero points if they are not computed from the float weight.

    Attributes:
        parts: its initializers; QDQ has several copies of some.
        aliases: initializers that share the bytes of another one.
        needs_sums: whether :meth:`sums` will be called.
        has_offsets: whether blocks have an offset besides scale and zero point.
    """

    def __init__(
        self,
        graph: ir.Graph,
        value: ir.Value,
        spec: QuantSpec,
        *,
        transposed: bool,
        hessian: Callable[[], Array] | None = None,
        in_linear_op: bool = True,
        uses: int = 1,
        stored: QuantizedTensor | None = None,
    ) -> None:
        assert value.const_value is not None
        self.graph, self.name, self.spec, self.transposed = graph, str(value.name), spec, transposed
        self.in_linear_op, self.uses = in_linear_op, uses
        self.label = f"{self.name}.T" if transposed else self.name
        shape = [int(size) for size in value.const_value.shape.numpy()]
        self.out_channels, self.in_channels = shape[::-1] if transposed else shape
        self.block_count = spec.block_count(self.in_channels)
        self.parts: dict[tuple[Part, int], ir.Value] = {}
        self.aliases: dict[ir.Value, ir.Value] = {}
        self.needs_sums = False
        self._copies = 0
        self._tensor, self._hessian, self._stored = value.const_value, hessian, stored
        self.has_offsets = stored is not None and stored.offsets is not None
        self._following: Sequence[QuantizedWeight] = ()
        self._future: Future[QuantizedValues] | None = None
        self._quantized: QuantizedValues | None = None
        self._sums: Array | None = None

    @property
    def values(self) -> ir.Value:
        """The initializer with the quantized values."""
        return self.parts[Part.VALUES, 0]

    def add(
        self,
        part: Part,
        dtype: ir.DataType,
        shape: Sequence[int],
        compute: Callable[[], Array],
        *,
        copy: int = 0,
    ) -> ir.Value:
        """Return an initializer, registered once, whose array is computed when it is read."""
        if (part, copy) not in self.parts:
            name = f"{self.label}.{part.value}{f'.{copy}' if copy else ''}"
            lazy = ir.LazyTensor(
                lambda: ir.tensor(np.ascontiguousarray(compute())),
                dtype,
                ir.Shape(shape),
                name=name,
            )
            self.parts[part, copy] = initializer(self.graph, name, lazy)
        return self.parts[part, copy]

    def add_alias(
        self, part: Part, source: ir.Value, shape: Sequence[int], *, copy: int = 0
    ) -> ir.Value:
        """Return an initializer of this shape over the bytes of ``source``."""
        tensor = source.const_value
        assert tensor is not None
        alias = self.add(
            part, tensor.dtype, shape, lambda: tensor.numpy().reshape(shape), copy=copy
        )
        self.aliases[alias] = source
        return alias

    def add_scales(
        self, *block_shape: int, part: Part = Part.SCALES, factor: float = 1.0
    ) -> ir.Value:
        """Return the scales ``(out, *block_shape)``, times a factor."""
        shape = self.out_channels, *block_shape
        return self.add(
            part,
            ir.DataType.FLOAT,
            shape,
            lambda: self.parameters().scales.reshape(shape) * np.float32(factor),
        )

    def count_copy(self) -> int:
        """Number the nodes that read separate initializers over the same bytes."""
        self._copies += 1
        return self._copies

    def add_midpoints(self) -> ir.Value:
        """Return zero points ``(out,)`` of symmetric uint8 values."""
        shape = (self.out_channels,)
        return self.add(
            Part.ZERO_POINTS,
            ir.DataType.UINT8,
            shape,
            lambda: np.full(shape, self.spec.midpoint, np.uint8),
        )

    def take_name(self) -> None:
        """Give the values the name of the float weight, so that ties are the same by name, and move
        the initializers to the end of the graph's, values first.
        """
        initializers = self.graph.initializers
        initializers.pop(self.name)
        parts = list(self.parts.values())  # values were added first
        for part in parts:
            initializers.pop(str(part.name))
        self.values.name = self.name
        for part in parts:
            self.graph.register_initializer(part)

    def read_values(self) -> Array:
        """Return the quantized values ``(out, padded in)`` and release them."""
        quantized = self._quantized
        if quantized is None or not quantized.values.size:
            quantized = self._wait()
        self._quantized = replace(quantized, values=np.empty(0, np.uint8))
        return quantized.values

    def parameters(self) -> QuantizedValues:
        """Return scales and zero points. The values may be gone."""
        self._quantized = self._quantized or self._wait()
        return self._quantized

    def sums(self) -> Array:
        """Return the sum of each output channel's values minus the midpoint: float32 ``(out,)``."""
        self.parameters()
        assert self._sums is not None
        return self._sums

    def _wait(self) -> QuantizedValues:
        """Wait for the thread that quantizes, and start those of the weights that come next."""
        self._start()
        for other in self._following:
            if other._quantized is None:
                other._start()
        future, self._future = self._future, None
        assert future is not None
        return future.result()

    def _start(self) -> None:
        self._future = self._future or _THREADS.submit(self._quantize)

    def _quantize(self) -> QuantizedValues:
        if self._stored is not None:
            parts = self._stored
            return QuantizedValues(parts.values, parts.scales, parts.zero_points, parts.offsets)
        stored = self._tensor.numpy()
        weight = stored.T if self.transposed else stored
        require_finite(weight, self.name)
        quantized = (
            round_to_nearest(weight, self.spec)
            if self._hessian is None
            else gptq_quantize(stored, self.spec, self._hessian(), transposed=self.transposed)
        )
        if self.needs_sums:
            sums = quantized.values.sum(axis=1, dtype=np.int32)
            midpoint = self.spec.midpoint * quantized.values.shape[1]
            self._sums = np.asarray(sums - np.int32(midpoint), np.float32)
        return quantized


def quantize_in_background(weights: Sequence[QuantizedWeight]) -> None:
    """Quantize small weights while earlier ones are read."""
    for index, weight in enumerate(weights):
        budget, following = _PREFETCH_BYTES, []
        for other in weights[index + 1 : index + 1 + 2 * CORES]:
            budget -= 4 * other.out_channels * other.in_channels
            if budget < 0:
                break
            following.append(other)
        weight._following = following
