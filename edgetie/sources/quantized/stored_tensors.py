"""The tensors of safetensors files, read when they are needed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import numpy as np

from edgetie.errors import SourceError
from edgetie.sources.quantized.tensor import Array


class StoredTensors:
    """Opens files; a context manager.

    Args:
        files: paths of all parts of a checkpoint.

    Attributes:
        remaining: by name, what was not taken: slices as safetensors has them.
        metadata: texts in the headers of the files.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.files = files
        self.remaining: dict[str, Any] = {}
        self.metadata: dict[str, str] = {}
        self._stack = ExitStack()
        self._open: dict[str, Any] = {}

    def __enter__(self) -> Self:
        from safetensors import safe_open

        for path in self.files:
            file = self._stack.enter_context(safe_open(path, framework="pt"))
            self.metadata.update(file.metadata() or {})
            names = list(file.keys())
            self.remaining.update({name: file.get_slice(name) for name in names})
            self._open.update(dict.fromkeys(names, file))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def modules(self, tensor: str) -> Iterator[str]:
        """Iterate over the names of modules that have a tensor of this name."""
        yield from [
            n.removesuffix(f".{tensor}") for n in self.remaining if n.endswith(f".{tensor}")
        ]

    def dtype(self, name: str) -> str | None:
        """Return the type of a tensor as the file names it, such as ``I8``; ``None`` for none."""
        return self.remaining[name].get_dtype() if name in self.remaining else None

    def take(self, name: str) -> Any:
        """Remove a tensor and return it, a :class:`torch.Tensor`.

        Raises:
            SourceError: if there is none of this name.
        """
        if name not in self.remaining:
            raise SourceError(f"{self.files[0]}: has no tensor {name}; download the model again")
        del self.remaining[name]
        return self._open[name].get_tensor(name)

    def take_array(self, name: str) -> Array:
        """Remove a tensor and return it; floating point as float32."""
        tensor = self.take(name)
        return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())

    def take_optional(self, name: str) -> Array | None:
        """Do the same; ``None`` if there is no such tensor."""
        return self.take_array(name) if name in self.remaining else None

    def drop(self, *suffixes: str) -> None:
        """Remove all tensors whose names end so."""
        for name in [name for name in self.remaining if name.endswith(suffixes)]:
            del self.remaining[name]

    def read_json(self, name: str) -> Mapping[str, Any]:
        """Return an object in the headers; an empty one if there is none of this name."""
        value = json.loads(self.metadata.get(name, "{}"))
        return value if isinstance(value, dict) else {}


def unpack_integers(words: Array, bits: int) -> Array:
    """Unpack unsigned integers of some bits from int32 words, the lowest bits first.

    Args:
        words: int32 ``(rows, words)``.
        bits: of an integer, from 1 to 8; one may begin in a word and end in the next.

    Returns:
        uint8 ``(rows, integers)``.
    """
    data = np.ascontiguousarray(words, "<i4").view(np.uint8)
    if bits == 8:
        return data
    if bits == 4:
        return np.stack([data & 15, data >> 4], axis=-1).reshape(len(data), -1)
    planes = np.unpackbits(data, axis=1, bitorder="little")
    planes = planes[:, : planes.shape[1] // bits * bits].reshape(len(data), -1, bits)
    return np.packbits(planes, axis=2, bitorder="little")[..., 0]
