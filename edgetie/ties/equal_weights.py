"""Find weights of equal content by hashing: as they are, in another shape, or transposed.

A fingerprint from a few thousand elements tells nearly all tensors apart without reading them. Only
tensors with a fingerprint in common are hashed completely, once each and in chunks, so neither time
nor memory grows with the number of comparisons.
"""

from __future__ import annotations

import hashlib
import mmap
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.external_data import byte_range

if TYPE_CHECKING:
    import onnx_ir as ir


_SAMPLES = 4096
_CHUNK_BYTES = 8 << 20

Array = np.ndarray[Any, Any]
Arrangement = Literal["same", "reshaped", "transposed"]


@dataclass(frozen=True)
class DuplicateWeight:
    """A weight, and how its elements are arranged compared with the first of its group."""

    value: ir.Value
    arrangement: Arrangement


def equal_groups(values: Iterable[ir.Value]) -> list[list[DuplicateWeight]]:
    """Group initializers with equal elements of one type, in the order of ``values``.

    Of several entries over the same bytes of a file, only the first is in a group.
    """
    candidates = _candidates(values)
    hashed: dict[Hashable, list[tuple[int, bool]]] = defaultdict(list)
    for index in _suspects(candidates):
        tensor = candidates[index][1]
        hashed[tensor.dtype, _hash(_chunks(tensor))].append((index, False))
    by_shape: dict[tuple[Hashable, tuple[int, ...]], int] = {}
    for key, members in hashed.items():
        for index, _ in members:
            by_shape.setdefault((key, tuple(candidates[index][1].shape.numpy())), index)
    for (key, shape), index in by_shape.items():
        tensor = candidates[index][1]
        if len(shape) != 2 or shape[0] > shape[1]:
            continue  # of a matrix and its transpose, the one with fewer rows is transposed
        transposed_key = tensor.dtype, _hash(_transposed_chunks(tensor))
        done = any(transposed for _, transposed in hashed[key])  # by the other of two square ones
        if transposed_key != key and transposed_key in hashed and not done:
            # the same elements in another shape are not the transpose of anything
            moved = [i for i, _ in hashed[key] if candidates[i][1].shape == tensor.shape]
            hashed[key] = [entry for entry in hashed[key] if entry[0] not in moved]
            hashed[transposed_key] += [(i, True) for i in moved]
    groups = sorted(sorted(members) for members in hashed.values() if len(members) > 1)
    return [
        _group([(candidates[i][0], transposed) for i, transposed in members]) for members in groups
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


def _group(members: list[tuple[ir.Value, bool]]) -> list[DuplicateWeight]:
    first, first_transposed = members[0]

    def arrangement(value: ir.Value, transposed: bool) -> Arrangement:
        if transposed != first_transposed:
            return "transposed"
        return "same" if list(value.shape or ()) == list(first.shape or ()) else "reshaped"

    return [DuplicateWeight(value, arrangement(value, flag)) for value, flag in members]


def _fingerprints(tensor: ir.TensorProtocol) -> list[Hashable]:
    """Hash samples in order, and of a matrix also the diagonal, which its transpose shares."""
    array = tensor.numpy()
    kind = (tensor.dtype, tensor.size)
    flat = array.reshape(-1)
    prints: list[Hashable] = [(kind, _hash([flat[:: max(1, len(flat) // _SAMPLES)].tobytes()]))]
    if array.ndim == 2:
        diagonal = np.diagonal(array)[:_SAMPLES].tobytes()
        prints.append((kind, tuple(sorted(array.shape)), _hash([diagonal])))
    _release_pages(array)
    return prints


def _hash(chunks: Iterable[Any]) -> bytes:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.digest()


def _chunks(tensor: ir.TensorProtocol) -> Iterator[Any]:
    """Yield the bytes of a tensor, of an external one read from its file in chunks."""
    import onnx_ir as ir

    if isinstance(tensor, ir.ExternalTensor) and tensor.length:
        yield from _file_chunks(Path(tensor.path), tensor.offset or 0, tensor.length)
    else:
        yield np.ascontiguousarray(tensor.numpy()).view(np.uint8).data


def _file_chunks(path: Path, offset: int, length: int) -> Iterator[memoryview]:
    """Yield a range of a file, a few megabytes at a time."""
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, length)))
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while length:
            count = file.readinto(buffer[: min(len(buffer), length)])
            if not count:
                raise OSError(f"{path}: ends before its tensors do")
            yield buffer[:count]
            length -= count


def _transposed_chunks(tensor: ir.TensorProtocol) -> Iterator[Any]:
    """Yield the bytes of a matrix's transpose, several of its rows at a time."""
    array = tensor.numpy()
    step = max(1, _CHUNK_BYTES // max(1, array.shape[0] * array.itemsize))
    for start in range(0, array.shape[1], step):
        yield np.ascontiguousarray(array[:, start : start + step].T).view(np.uint8).data
        _release_pages(array)


def _release_pages(array: Array) -> None:
    """Release the pages of the mapped file that ``array`` is a view of, if there is one."""
    base: Any = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    base = base.obj if isinstance(base, memoryview) else base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
