"""Descriptions of a model's inputs, outputs and cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

PAST, PRESENT = "past_key_values", "present"
"""Prefixes of the cache's names as input and as output."""
_NUMPY_NAMES = {"float": "float32", "double": "float64"}


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: name, dtype, and shape (symbolic dimensions as strings).

    The dtype has numpy's name in a session, and ONNX's in a manifest.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def numpy_dtype(self) -> str:
        """The dtype by numpy's name."""
        return _NUMPY_NAMES.get(self.dtype, self.dtype)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TensorInfo:
        """Read one from a manifest."""
        return cls(data["name"], data["dtype"], tuple(data["shape"]))


@dataclass(frozen=True)
class CacheTensor:
    """One tensor of the cache, ``(batch, *sizes)``; zeros are the empty cache.

    Attributes:
        name: layer and part, such as ``3.key`` or, of a recurrent layer, ``3.conv_state``.
        sizes: of the axes after the batch; 0 for the axis that is as long as the past, which keys
            and values have and a recurrent layer's state has not.
    """

    name: str
    sizes: tuple[int, ...]

    @property
    def past(self) -> str:
        """Its name as an input."""
        return f"{PAST}.{self.name}"

    @property
    def present(self) -> str:
        """Its name as an output."""
        return f"{PRESENT}.{self.name}"

    @property
    def grows(self) -> bool:
        """Whether it holds every past token, or a state of one size."""
        return 0 in self.sizes

    def shape(self, batch: int, past: int = 0) -> tuple[int, ...]:
        """Its shape for a batch size and a number of past tokens."""
        return batch, *(size or past for size in self.sizes)

    def first(self, values: NDArray[Any], count: int) -> NDArray[Any]:
        """View the first ``count`` past tokens of its values; all of a recurrent state."""
        return values[:, *(slice(size or count) for size in self.sizes)]
