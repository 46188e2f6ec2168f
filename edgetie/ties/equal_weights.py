"""Weights of equal content, found by hashing: as they are, in another shape, or transposed.

A fingerprint from a few thousand elements tells nearly all tensors apart without reading them. Only
those whose fingerprints meet are hashed whole, once each, in pieces, so neither the time nor the
memory depends on how many there are to compare.
"""

from __future__ import annotations

import hashlib
import mmap
from collections import defaultdict
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
_PIECE = 8 << 20  # bytes

Array = np.ndarray[Any, Any]
Arrangement = Literal["same", "reshaped", "transposed"]


@dataclass(frozen=True)
class DuplicateWeight:
    """A weight and how it stands to the first of its group."""

    value: ir.Value
    form: Arrangement


def equal_groups(values: Iterable[ir.Value]) -> list[list[DuplicateWeight]]:
    """Groups of initializers with equal elements of one type, in the order of ``values``.

    Two entries over the same bytes of a file are one; the first stands for both.
    """
    import onnx_ir as ir

    tensors: list[tuple[ir.Value, ir.TensorProtocol]] = []
    ranges: set[Hashable] = set()
    for value in values:
        tensor = value.const_value
        if tensor is None or tensor.size < MIN_ELEMENTS or tensor.dtype == ir.DataType.STRING:
            continue
        where = byte_range(value)
        if where is None or where not in ranges:
            ranges.add(where)
            tensors.append((value, tensor))
    sizes: dict[Hashable, list[int]] = defaultdict(list)
    for index, (_, tensor) in enumerate(tensors):
        sizes[tensor.dtype, tensor.size].append(index)
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for same_size in sizes.values():
        for index in same_size if len(same_size) > 1 else ():
            for fingerprint in _fingerprints(tensors[index][1]):
                alike[fingerprint].append(index)
    suspects = sorted({i for indices in alike.values() if len(indices) > 1 for i in indices})
    hashed: dict[Hashable, list[tuple[int, bool]]] = defaultdict(list)
    for index in suspects:
        tensor = tensors[index][1]
        hashed[tensor.dtype, _hash(_pieces(tensor))].append((index, False))
    shapes: dict[tuple[Hashable, tuple[int, ...]], int] = {}
    for key, members in hashed.items():
        for index, _ in members:
            shapes.setdefault((key, tuple(tensors[index][1].shape.numpy())), index)
    for (key, shape), index in shapes.items():
        tensor = tensors[index][1]
        if len(shape) != 2 or shape[0] > shape[1]:
            continue  # of a matrix and its transpose, the one with fewer rows is turned
        turned = tensor.dtype, _hash(_turned_pieces(tensor))
        done = any(is_turned for _, is_turned in hashed[key])  # a square one's other side did it
        if turned != key and turned in hashed and not done:
            # an entry of these elements in another shape is not the transpose of anything
            alike_shape = [m for m in hashed[key] if tensors[m[0]][1].shape == tensor.shape]
            hashed[key] = [m for m in hashed[key] if m not in alike_shape]
            hashed[turned] += [(i, True) for i, _ in alike_shape]
    groups = [sorted(members) for members in hashed.values() if len(members) > 1]
    return [
        _group([(tensors[i][0], turned) for i, turned in members]) for members in sorted(groups)
    ]


def _group(members: list[tuple[ir.Value, bool]]) -> list[DuplicateWeight]:
    first, first_turned = members[0]

    def form(value: ir.Value, turned: bool) -> Arrangement:
        if turned != first_turned:
            return "transposed"
        return "same" if list(value.shape or ()) == list(first.shape or ()) else "reshaped"

    return [DuplicateWeight(value, form(value, turned)) for value, turned in members]


def _fingerprints(tensor: ir.TensorProtocol) -> list[Hashable]:
    """What equal tensors share: samples in order; of a matrix also its diagonal, which a
    transposition keeps.
    """
    array = tensor.numpy()
    kind = (tensor.dtype, tensor.size)
    flat = array.reshape(-1)
    found: list[Hashable] = [(kind, _hash([flat[:: max(1, len(flat) // _SAMPLES)].tobytes()]))]
    if array.ndim == 2:
        diagonal = np.diagonal(array)[:_SAMPLES].tobytes()
        found.append((kind, tuple(sorted(array.shape)), _hash([diagonal])))
    _forget_pages(array)
    return found


def _hash(pieces: Iterable[Any]) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def _pieces(tensor: ir.TensorProtocol) -> Iterator[Any]:
    """The bytes of a tensor, read from its file a piece at a time where it has one."""
    import onnx_ir as ir

    if isinstance(tensor, ir.ExternalTensor) and tensor.length:
        yield from file_pieces(Path(tensor.path), tensor.offset or 0, tensor.length)
    else:
        yield np.ascontiguousarray(tensor.numpy()).view(np.uint8).data


def file_pieces(path: Path, offset: int, length: int) -> Iterator[memoryview]:
    """A range of a file, a few megabytes at a time."""
    buffer = memoryview(bytearray(min(_PIECE, length)))
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while length:
            count = file.readinto(buffer[: min(len(buffer), length)])
            if not count:
                raise OSError(f"{path}: ends before its tensors do")
            yield buffer[:count]
            length -= count


def _turned_pieces(tensor: ir.TensorProtocol) -> Iterator[Any]:
    """The bytes of a matrix's transpose, some of its rows at a time."""
    array = tensor.numpy()
    step = max(1, _PIECE // max(1, array.shape[0] * array.itemsize))
    for start in range(0, array.shape[1], step):
        yield np.ascontiguousarray(array[:, start : start + step].T).view(np.uint8).data
        _forget_pages(array)


def _forget_pages(array: Array) -> None:
    """Give back the pages of the mapped file behind ``array``, if there is one."""
    base: Any = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    base = base.obj if isinstance(base, memoryview) else base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
