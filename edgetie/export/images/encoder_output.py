"""Run an image encoder, and store image embeddings as its output does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_DEEPER = "deepstack_features"


def image_encoder(module: Any) -> Any:
    """The part whose ``get_image_features`` has the encoder's parameters."""
    inner = getattr(module, "base_model", module)
    return inner if hasattr(inner, "get_image_features") else module


class _Rows(NamedTuple):
    """How image embeddings are stored: a tensor of so many axes, or one for each image."""

    rank: int
    is_list: bool

    @classmethod
    def of(cls, value: Any) -> "_Rows":
        is_list = isinstance(value, (list, tuple))
        return cls((value[0] if is_list else value).ndim, is_list)

    def make(self, rows: Tensor) -> Any:
        """Store ``(count, hidden_size)`` like this."""
        tensor = rows.view(*[1] * (self.rank - 2), *rows.shape)
        return [tensor] if self.is_list else tensor


def _flat(value: Any) -> Tensor:
    """Join image embeddings to ``(count, hidden_size)``."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


@dataclass(frozen=True)
class EncoderOutput:
    """How ``forward`` gets image embeddings.

    Attributes:
        kind: class of what ``get_image_features`` returns.
        no_rows: of no image, ``(0, hidden_size)`` for each output of the encoder.
        first: of ``pooler_output``.
        deeper: of ``deepstack_features``, which deeper layers add; ``None`` if there is none.
        constants: other tensors in it, which are the same for all images.
    """

    kind: Any
    no_rows: tuple[Tensor, ...]
    first: _Rows
    deeper: tuple[_Rows, ...] | None
    constants: Mapping[str, Tensor]

    @classmethod
    def of(cls, output: Any, other: Any) -> "EncoderOutput":
        """Describe what the encoder returned for two images of one size."""
        deeper = getattr(output, _DEEPER, None)
        layers = None if deeper is None else tuple(map(_Rows.of, deeper))
        no_rows = tuple(_flat(each)[:0] for each in (output.pooler_output, *(deeper or ())))
        constants = {
            name: value
            for name, value in output.items()
            if isinstance(value, Tensor) and torch.equal(value, other[name])
        }
        return cls(type(output), no_rows, _Rows.of(output.pooler_output), layers, constants)

    @property
    def hidden_size(self) -> int:
        """Size of an image embedding."""
        return self.no_rows[0].shape[-1]

    def make(self, rows: Sequence[Tensor]) -> Any:
        """Make such an output from embeddings ``(count, hidden_size)``."""
        first, *others = rows
        fields: dict[str, Any] = {**self.constants, "pooler_output": self.first.make(first)}
        if self.deeper is not None:
            layers = zip(self.deeper, others, strict=True)
            fields[_DEEPER] = [layer.make(value) for layer, value in layers]
        return self.kind(**fields)


def run_encoder(module: nn.Module, feeds: Mapping[str, Any]) -> Any:
    encode = image_encoder(module).get_image_features
    with torch.no_grad():
        return encode(**feeds, return_dict=True)


def embed(module: nn.Module, feeds: Mapping[str, Any]) -> list[Tensor]:
    """Compute image embeddings, ``(count, hidden_size)`` each."""
    output = run_encoder(module, feeds)
    deeper = getattr(output, _DEEPER, None) or ()
    return [_flat(value) for value in (output.pooler_output, *deeper)]
