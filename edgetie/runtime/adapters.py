"""LoRA adapters: their files, and the inputs of a graph that they fill.

The graph of a bundle with adapters adds ``x A B`` to ``x W`` wherever an adapter changes ``W``
(LoRA, Hu et al. 2022). ``A`` ``(in, rank)`` and ``B`` ``(rank, out)`` are inputs with a default of
rank 0, which adds nothing. A file in ONNX Runtime's adapter format has their values.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from struct import unpack_from
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.names import ADAPTER_ENDING, LORA_A, LORA_B
from edgetie.errors import BundleError, EdgetieError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.float32),
    10: np.dtype(np.float16),
}  # by number in ONNX
_VERSION = 1
_IDENTIFIER = b"TORT"
# places of fields in the tables of ONNX Runtime's adapter_schema.fbs, as flatbuffers counts them
_PARAMETERS = 10
_PARAMETER_NAME, _DIMENSIONS, _DATA_TYPE, _DATA = 4, 6, 8, 10


def require_adapter_name(name: str) -> None:
    """Refuse a name that cannot be that of a file on every system.

    Raises:
        EdgetieError: naming it.
    """
    if not _NAME.fullmatch(name):
        message = "not a name for an adapter; use letters, digits, hyphen, dot and _, at most 64"
        raise EdgetieError(message, parameter="adapter", value=name)


def adapter_path(directory: Path, name: str) -> Path:
    """The file of an adapter in a bundle."""
    return directory / f"{name}{ADAPTER_ENDING}"


def is_adapter_input(name: str) -> bool:
    """Whether an input of a graph is a matrix of an adapter."""
    return name.endswith((LORA_A, LORA_B))


def write_adapter(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a file in ONNX Runtime's adapter format."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    values = {n: ort.OrtValue.ortvalue_from_numpy(a) for n, a in arrays.items()}  # not copies
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(_VERSION)
    adapter.set_model_version(_VERSION)
    adapter.set_parameters(values)
    adapter.export_adapter(str(path))


class AdapterFile:
    """An adapter's tensors by name, mapped from its file.

    ONNX Runtime's own reader copies them if they are to be bound, as those of
    :class:`~edgetie.runtime.decoding.decoder.Decoder` are.

    Raises:
        BundleError: if it is missing or not such a file.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self.tensors = _read_tensors(self._memory)
        except OSError as error:
            raise BundleError(
                f"{path}: cannot be read ({error.strerror}); export it again"
            ) from error
        except Exception as error:  # of any kind, if another file is read
            raise BundleError(
                f"{path}: not an adapter in ONNX Runtime's format; export it again"
            ) from error

    def release(self) -> None:
        """Release the file's pages, which are read again if they are needed again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)


def open_adapter(bundle: Bundle, session: Any, name: str) -> AdapterFile:
    """Map an adapter of a bundle for an ``InferenceSession`` of its graph.

    Raises:
        BundleError: if the bundle has no such adapter, or its file is not one of this graph.
    """
    names = bundle.manifest.adapters
    if name not in names:
        others = f"it has {', '.join(names)}" if names else "export it again with adapters"
        message = f"{bundle.directory}: has no such adapter; {others}"
        raise BundleError(message, parameter="adapter", value=name)
    path = adapter_path(bundle.directory, name)
    file = AdapterFile(path)
    inputs = {value.name: value.shape for value in session.get_overridable_initializers()}
    for tensor, array in file.tensors.items():
        sizes = zip(inputs.get(tensor, ()), array.shape, strict=False)
        fits = all(size == actual for size, actual in sizes if isinstance(size, int))
        if tensor not in inputs or not fits:
            raise BundleError(
                f"{path}: {tensor} {array.shape} does not fit {bundle.model_path.name}; export "
                "both again"
            )
    return file


def _read_tensors(memory: mmap.mmap) -> dict[str, NDArray[Any]]:
    """Read the tables of a flatbuffer. Offsets are relative to where they are stored."""

    def follow(place: int) -> int:
        return place + int(unpack_from("<I", memory, place)[0])

    def field(table: int, entry: int) -> int:
        (back,) = unpack_from("<i", memory, table)
        return table + int(unpack_from("<H", memory, table - back + entry)[0])

    def vector(table: int, entry: int) -> tuple[int, int]:
        """The place and the number of the elements of a vector."""
        start = follow(field(table, entry))
        return start + 4, int(unpack_from("<I", memory, start)[0])

    if memory[4:8] != _IDENTIFIER:
        raise ValueError("another kind of file")
    tensors = {}
    first, count = vector(follow(0), _PARAMETERS)
    for place in range(first, first + 4 * count, 4):
        table = follow(place)
        start, length = vector(table, _PARAMETER_NAME)
        name = memory[start : start + length].decode()
        start, axes = vector(table, _DIMENSIONS)
        shape = unpack_from(f"<{axes}q", memory, start)
        dtype = _DTYPES[unpack_from("<i", memory, field(table, _DATA_TYPE))[0]]
        start, length = vector(table, _DATA)
        array = np.frombuffer(memory, dtype, length // dtype.itemsize, start)
        tensors[name] = array.reshape(shape)
    return tensors
