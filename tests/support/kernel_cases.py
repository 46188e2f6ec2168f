"""Random nodes for edgetie's kernels, and what they must compute within which bounds.

The references follow the operators' specifications in float64. The bounds allow activations
rounded to 16 bits, and float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from kernel_models import MICROSOFT, Arrays, build_model
from onnx import helper

TOKENS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 20, 33, 130, 300)
BLOCKS = (16, 32, 64, 128, 256, 512, 1024)
LARGEST = 32512
"""The largest rounded activation."""
SHARED_SCALE = 128
"""Neighbours that may share the scale of their 16 bits if blocks are smaller."""
NEGLIGIBLE = 1e-30
"""Activations that may count as 0."""
UNIT = 2.0**-24
"""The relative error of one float32 operation."""
TINY = 2.0**-149
"""The smallest float32."""


@dataclass(frozen=True)
class Result:
    """What an output must be: not finite where ``expected`` is not, else as near as ``bound``."""

    expected: np.ndarray
    bound: np.ndarray


@dataclass(frozen=True)
class Run:
    """Inputs, and the outputs' results; ``None`` if the run must fail."""

    feeds: Arrays
    results: list[Result] | None


@dataclass(frozen=True)
class Case:
    """A model that the provider takes as one, and runs of it."""

    description: str
    model: bytes
    runs: list[Run]
    nodes: int = 1


@dataclass(frozen=True)
class Quantized:
    """A matrix ``(rows, columns)`` as MatMulNBits stores it."""

    packed: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None
    columns: int
    block: int
    bits: int
    offsets: np.ndarray | None = None

    def expand(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return values, zero points and scales of all elements, each ``(rows, columns)``."""
        rows, blocks = self.scales.shape
        values = unpack(self.packed.reshape(rows, -1), self.bits)[:, : self.columns]
        zeros = np.full((rows, blocks), 2 ** (self.bits - 1))
        if self.zero_points is not None:
            zeros = unpack(self.zero_points, self.bits)[:, :blocks]
        block = np.arange(self.columns) // self.block
        scales = self.scales.astype(np.float64)
        return values.astype(np.float64), zeros[:, block].astype(np.float64), scales[:, block]

    def multiply(self, x: np.ndarray, bias: np.ndarray | None) -> Result:
        """Multiply ``x (tokens, columns)`` by the transposed matrix, and add ``bias (rows)``."""
        values, zeros, scales = self.expand()
        weights = (values - zeros) * scales
        if self.offsets is not None:
            offsets = self.offsets[:, np.arange(self.columns) // self.block].astype(np.float64)
            weights = weights + offsets
        x = x.astype(np.float64)
        valid = np.isfinite(x).all(1)
        size = np.where(valid[:, None], np.abs(x), 0)
        step = window_maximum(size, max(SHARED_SCALE, min(self.block, 256))) / LARGEST
        error = 0.505 * step + 4 * UNIT * size + np.where(size < NEGLIGIBLE, size, 0)
        bound = error @ np.abs(weights).T
        rounding = UNIT * (8 + 2 * np.sqrt(self.columns))
        bound += rounding * (size @ ((values + zeros) * np.abs(scales)).T)
        if self.offsets is not None:
            bound += rounding * (size @ np.abs(offsets).T)
        with np.errstate(invalid="ignore"):
            y = np.where(valid[:, None], x, 0) @ weights.T
        if bias is not None:
            y = y + bias.astype(np.float64)
        bound += 2 * UNIT * np.abs(y)
        return Result(np.where(valid[:, None], y, np.nan), bound)


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Unpack the last axis of bytes: low half first if ``bits`` is 4."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def window_maximum(size: np.ndarray, width: int) -> np.ndarray:
    """Return for each element of ``(rows, columns)`` the maximum of its window of ``width``."""
    padded = np.pad(size, ((0, 0), (0, -size.shape[1] % width)))
    top = padded.reshape(len(size), padded.shape[1] // width, width).max(-1)
    return np.repeat(top, width, 1)[:, : size.shape[1]]


def random_bytes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape, np.uint8)


def random_scales(rng: np.random.Generator, *shape: int) -> np.ndarray:
    scales = np.exp(rng.normal(-4, 1, shape)) * rng.choice([-1, 0, 1, 1, 1, 1], shape)
    return scales.astype(np.float32)


def random_tokens(rng: np.random.Generator, tokens: int, size: int) -> np.ndarray:
    """Return ``(tokens, size)``: plain ones, with outliers, tiny, zero, constant, not finite."""
    x = rng.standard_normal((tokens, size)).astype(np.float32)
    kinds = rng.choice(8, tokens, p=[0.6, 0.12, 0.05, 0.05, 0.03, 0.05, 0.05, 0.05])
    for token, kind in zip(x, kinds, strict=True):
        at = rng.integers(size)
        if kind == 1:
            token[at] = 10 ** rng.uniform(2, 12) * rng.choice([-1, 1])
        elif kind == 2:
            token *= np.float32(1e-40)
        elif kind == 3:
            token[:] = 0
        elif kind == 4:
            token[:] = token[at]
        elif kind == 5:
            token[at] = rng.choice([np.nan, np.inf, -np.inf])
        elif kind == 6:
            token *= np.float32(10 ** rng.uniform(-28, 12))
        elif kind == 7:
            token[rng.random(size) < 0.9] = 0
    return x


def random_width(rng: np.random.Generator, block: int) -> int:
    """Return a number of columns: few, a part of a block, or near a multiple of it."""
    if rng.random() < 0.4:
        return int(rng.integers(1, 2 * block + 1))
    return int(max(1, rng.integers(1, max(2, 1100 // block)) * block + rng.choice([-1, 0, 0, 1])))


def matmul_case(rng: np.random.Generator) -> Case:
    """Return a MatMulNBits node, perhaps with the nodes that add offsets, and three runs of it."""
    bits, block = int(rng.choice([4, 8])), int(rng.choice(BLOCKS))
    columns = random_width(rng, block)
    rows = int(rng.integers(1, 41) if rng.random() < 0.8 else rng.integers(41, 400))
    blocks = -(-columns // block)
    zeros = random_bytes(rng, rows, -(-blocks * bits // 8)) if rng.random() < 0.5 else None
    matrix = Quantized(
        random_bytes(rng, rows, blocks, block * bits // 8),
        random_scales(rng, rows, blocks),
        zeros, columns, block, bits,
        random_scales(rng, rows, blocks) if not columns % block and rng.random() < 0.5 else None,
    )  # fmt: skip
    bias = rng.standard_normal(rows).astype(np.float32) if rng.random() < 0.4 else None
    constants = {"weights": matrix.packed, "scales": matrix.scales}
    names = ["x", "weights", "scales", "", "", ""]
    for place, name, array in ((3, "zero_points", zeros), (5, "bias", bias)):
        if array is not None:
            constants[name], names[place] = array, name
    node = helper.make_node(
        "MatMulNBits", names, ["y"], domain=MICROSOFT,
        N=rows, K=columns, block_size=block, bits=bits,
    )  # fmt: skip
    nodes = [node]
    if matrix.offsets is not None:
        constants |= {
            "offsets": matrix.offsets,
            "blocks": np.array([-1, blocks, block]),
            "axis": np.array([2]),
        }
        node.output[0] = "product"
        nodes += [
            helper.make_node("Reshape", ["x", "blocks"], ["apart"]),
            helper.make_node("ReduceSum", ["apart", "axis"], ["sums"], keepdims=0),
            helper.make_node("Gemm", ["sums", "offsets"], ["flat"], transB=1),
            helper.make_node("Shape", ["product"], ["sizes"]),
            helper.make_node("Reshape", ["flat", "sizes"], ["addend"]),
            helper.make_node("Add", ["product", "addend"], ["y"]),
        ]
    runs, counts = [], rng.choice(TOKENS, 3).tolist()
    for tokens in counts:
        x = random_tokens(rng, tokens, columns)
        result = matrix.multiply(x, bias)
        shape = (2, tokens // 2) if tokens % 2 == 0 else (1, tokens)
        results = [Result(*(a.reshape(*shape, rows) for a in (result.expected, result.bound)))]
        runs.append(Run({"x": x.reshape(*shape, columns)}, results))
    model = build_model(nodes, constants, {"x": (np.float32, ["batch", "sequence", columns])})
    extras = (
        f"zero points {zeros is not None}, bias {bias is not None}, "
        f"offsets {matrix.offsets is not None}"
    )
    return Case(
        f"MatMulNBits bits {bits}, block {block}, K {columns}, N {rows}, {extras}, tokens {counts}",
        model,
        runs,
        len(nodes),
    )


def gather_case(rng: np.random.Generator) -> Case:
    """Return a GatherBlockQuantized node and three runs of it, some with an index out of range."""
    bits, block = int(rng.choice([4, 8])), int(rng.choice(BLOCKS))
    rows, middle = int(rng.integers(1, 50)), rng.integers(1, 4, rng.integers(3) // 2).tolist()
    leading, has_zeros = [rows, *middle], rng.random() < 0.5
    columns = random_width(rng, block)
    if middle:  # whole blocks, and of 4 bits whole bytes of zero points
        columns = int(rng.integers(1, 4)) * block * (2 if bits == 4 and has_zeros else 1)
    columns += columns % 2 if bits == 4 else 0
    blocks = -(-columns // block)
    zeros = random_bytes(rng, *leading, -(-blocks * bits // 8)) if has_zeros else None
    table = random_bytes(rng, *leading, columns * bits // 8)
    scales = random_scales(rng, *leading, blocks)
    flat = Quantized(
        table.reshape(-1, columns * bits // 8),
        scales.reshape(-1, blocks),
        None if zeros is None else zeros.reshape(-1, zeros.shape[-1]),
        columns, block, bits,
    )  # fmt: skip
    values, zero, scale = flat.expand()
    rows_of_table = ((values - zero).astype(np.float32) * scale.astype(np.float32)).reshape(
        *leading, columns
    )
    kind = rng.choice([np.int32, np.int64])
    rank = int(rng.integers(0, 4))
    names = ["table", "ids", "scales"] + (["zero_points"] if zeros is not None else [])
    constants = {"table": table, "scales": scales}
    if zeros is not None:
        constants["zero_points"] = zeros
    node = helper.make_node(
        "GatherBlockQuantized", names, ["y"], domain=MICROSOFT,
        block_size=block, bits=bits, gather_axis=0, quantize_axis=len(leading),
    )  # fmt: skip
    model = build_model([node], constants, {"ids": (kind, [f"axis_{i}" for i in range(rank)])})
    runs = []
    for _ in range(3):
        ids = rng.integers(-rows, rows, rng.integers(0, 5, rank), kind)
        fails = ids.size > 0 and rng.random() < 0.1
        if fails:
            ids.flat[rng.integers(ids.size)] = rng.choice([rows, -rows - 1, 2**31 - 1, -(2**31)])
            runs.append(Run({"ids": ids}, None))
        else:
            expected = rows_of_table[ids]
            runs.append(Run({"ids": ids}, [Result(expected, np.zeros(expected.shape))]))
    extras = f"zero points {zeros is not None}, {np.dtype(kind)} of rank {rank}"
    return Case(
        f"GatherBlockQuantized bits {bits}, block {block}, table {leading} x {columns}, {extras}",
        model,
        runs,
    )


def normalize(terms: list[np.ndarray], gain: np.ndarray, epsilon: float) -> tuple[Result, Result]:
    """Return the RMS norm of the terms' sum over the last axis, and the sum."""
    total = np.zeros(())
    error = np.zeros(())
    for term in terms:
        total = total + term.astype(np.float64)
        error = error + UNIT * np.abs(total)
    error = error if len(terms) > 1 else np.zeros(total.shape)
    size = total.shape[-1]
    square = (total**2).mean(-1, keepdims=True)
    norm = total / np.sqrt(square + epsilon) * gain
    relative = UNIT * (8 + np.sqrt(size)) + (np.abs(total) * error).mean(-1, keepdims=True) / (
        square + epsilon
    )
    bound = np.abs(norm) * relative + error * np.abs(gain) / np.sqrt(square + epsilon)
    return Result(norm, np.nan_to_num(bound) + TINY * (1 + np.abs(gain))), Result(total, error)


def norm_case(rng: np.random.Generator) -> Case:
    """Return a norm, plain or with a skip connection, and three runs of it."""
    size = int(rng.integers(2, 80) if rng.random() < 0.5 else rng.integers(80, 700))
    gain = rng.standard_normal(size).astype(np.float32)
    epsilon = float(np.float32(10 ** rng.uniform(-12, -3)))
    operator = rng.choice(
        ["RMSNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"]
    )
    skips = operator[:4] == "Skip"
    layout = rng.choice(["same", "one item", "no batch"]) if skips else "none"
    bias = rng.standard_normal(size).astype(np.float32) if skips and rng.random() < 0.5 else None
    with_sum = skips and rng.random() < 0.5
    names = ["x", "skip", "gain", "bias"] if skips else ["x", "gain"]
    node = helper.make_node(
        operator, names[: 3 if skips and bias is None else 4],
        ["y", "", "", "sum"] if with_sum else ["y"],
        domain=MICROSOFT if skips else "", epsilon=epsilon,
    )  # fmt: skip
    constants = {"gain": gain} | ({} if bias is None else {"bias": bias})
    inputs = {"x": (np.float32, ["batch", "sequence", size])}
    if skips:
        leading = {"same": ["batch", "sequence"], "one item": [1, "sequence"]}
        inputs["skip"] = (np.float32, [*leading.get(layout, ["sequence"]), size])
    runs = []
    for _ in range(3):
        batch, sequence = int(rng.integers(1, 5)), int(rng.choice([0, 1, 2, 3, 7, 40]))
        x = random_tokens(rng, batch * sequence, size).reshape(batch, sequence, size)
        feeds, terms = {"x": x}, [x]
        if skips:
            items = batch if layout == "same" else 1
            skip = random_tokens(rng, items * sequence, size).reshape(items, sequence, size)
            feeds["skip"] = skip[0] if layout == "no batch" else skip
            terms += [skip, *([] if bias is None else [bias])]
        with np.errstate(invalid="ignore"):
            norm, total = normalize(terms, gain, epsilon)
        runs.append(Run(feeds, [norm, total] if with_sum else [norm]))
    extras = f"bias {bias is not None}, sum {with_sum}, epsilon {epsilon:.1e}"
    return Case(
        f"{operator} size {size}, skip {layout}, {extras}",
        build_model([node], constants, inputs),
        runs,
    )


CASES: dict[str, Callable[[np.random.Generator], Case]] = {
    "matmul": matmul_case,
    "gather": gather_case,
    "norm": norm_case,
}


def random_cases(seed: int, runs: int) -> Iterator[tuple[str, Case]]:
    """Yield cases, by kind, until they have as many runs: half of them products."""
    count, number = 0, 0
    while count < runs:
        rng = np.random.default_rng([seed, number])
        kind = ("matmul", "gather", "matmul", "norm")[number % 4]
        case = CASES[kind](rng)
        yield kind, case
        number, count = number + 1, count + len(case.runs)


def excess(result: Result, output: Any) -> float:
    """Return the largest error as a multiple of its bound; infinite where it is not comparable."""
    finite = np.isfinite(result.expected)
    if output.shape != result.expected.shape or (np.isfinite(output) != finite).any():
        return float("inf")
    error = np.abs(output[finite].astype(np.float64) - result.expected[finite])
    bound = result.bound[finite]
    if not error.size or not error.any():
        return 0.0
    return float((error / np.maximum(bound, 1e-300)).max())
