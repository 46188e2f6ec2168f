"""Find weights of equal content by hashing: as they are, in another shape, or transposed."""

from __future__ import annotations

import hashlib
import mmap
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.external_data import byte_range

if TYPE_CHECKING:
    import onnx_ir as ir

_SAMPLES = 4096
_CHUNK_BYTES = 8 << 20

Array = np.ndarray[Any, Any]


class DuplicateWeight(NamedTuple):
    """A weight, and whether its elements are those of the first of its group transposed."""

    value: ir.Value
    transposed: bool


def equal_groups(values: Iterable[ir.Value]) -> list[list[DuplicateWeight]]:
    """Group initializers with equal elements of one type, in the order of ``values``.

    Of several entries over the same bytes of a file, only the first is in a group. Only tensors
    with a fingerprint in common, made of a few thousand elements, are read completely.
    """
    candidates = _candidates(values)
    hashed: dict[Hashable, list[tuple[int, bool]]] = defaultdict(list)
    for index in _suspects(candidates):
        tensor = candidates[index][1]
        hashed[tensor.dtype, _hash(tensor.numpy())].append((index, False))
    by_shape: dict[tuple[Hashable, tuple[int, ...]], int] = {}
    for key, members in hashed.items():
        for index, _ in members:
            by_shape.setdefault((key, tuple(candidates[index][1].shape.numpy())), index)
    for (key, shape), index in by_shape.items():
        tensor = candidates[index][1]
        if len(shape) != 2 or shape[0] > shape[1]:
            continue  # of a matrix and its transpose, the one with fewer rows is transposed
        transposed_key = tensor.dtype, _hash(tensor.numpy(), transposed=True)
        done = any(transposed for _, transposed in hashed[key])  # by the other of two square ones
        if transposed_key != key and transposed_key in hashed and not done:
            # the same elements in another shape are not the transpose of anything
            moved = [i for i, _ in hashed[key] if candidates[i][1].shape == tensor.shape]
            hashed[key] = [entry for entry in hashed[key] if entry[0] not in moved]
            hashed[transposed_key] += [(i, True) for i in moved]
    groups = sorted(sorted(members) for members in hashed.values() if len(members) > 1)
    return [
        [DuplicateWeight(candidates[i][0], flag != members[0][1]) for i, flag in members]
        for members in groups
    ]


def _candidates(values: Iterable[ir.Value]) -> list[tuple[ir.Value, ir.TensorProtocol]]:
    """List the initializers that are large enough to compare, one for each range of a file."""
    import onnx_ir as ir

    candidates: list[tuple[ir.Value, ir.TensorProtocol]] = []
    ranges: set[Hashable] = set()
    for value in values:
        tensor = value.const_value
        if tensor is None or tensor.size < MIN_ELEMENTS or tensor.dtype == ir.DataType.STRING:
            continue
        source = byte_range(value)
        if source is None or source not in ranges:
            ranges.add(source)
            candidates.append((value, tensor))
    return candidates


def _suspects(candidates: list[tuple[ir.Value, ir.TensorProtocol]]) -> list[int]:
    """Return the indices of tensors that have a fingerprint in common with another one."""
    sizes = Counter((tensor.dtype, tensor.size) for _, tensor in candidates)
    by_fingerprint: dict[Hashable, list[int]] = defaultdict(list)
    for index, (_, tensor) in enumerate(candidates):
        if sizes[tensor.dtype, tensor.size] > 1:
            for fingerprint in _fingerprints(tensor):
                by_fingerprint[fingerprint].append(index)
    return sorted({i for indices in by_fingerprint.values() if len(indices) > 1 for i in indices})


def _fingerprints(tensor: ir.TensorProtocol) -> list[Hashable]:
    """Hash samples in order, and of a matrix also the diagonal, which its transpose shares."""
    array = tensor.numpy()
    kind = (tensor.dtype, tensor.size)
    flat = array.reshape(-1)
    prints: list[Hashable] = [(kind, _hash(flat[:: max(1, len(flat) // _SAMPLES)]))]
    if array.ndim == 2:
        diagonal = _hash(np.diagonal(array)[:_SAMPLES])
        prints.append((kind, tuple(sorted(array.shape)), diagonal))
    return prints


def _hash(array: Array, *, transposed: bool = False) -> bytes:
    """Hash the bytes of an array or of a matrix's transpose, a few megabytes at a time."""
    parts = array.T if transposed else array.reshape(-1)
    step = max(1, _CHUNK_BYTES * len(parts) // parts.nbytes)
    digest = hashlib.sha256()
    for start in range(0, len(parts), step):
        digest.update(np.ascontiguousarray(parts[start : start + step]).view(np.uint8).data)
        _release_pages(array)
    return digest.digest()


def _release_pages(array: Array) -> None:
    """Release the pages of the mapped file that ``array`` is a view of, if there is one."""
    base: Any = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    base = base.obj if isinstance(base, memoryview) else base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
