"""Put image embeddings into the places of image tokens, with operations that can be traced."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)


class PlaceRows(TorchFunctionMode):
    """Puts rows into the places of a mask ``(batch, sequence)``, in order."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask[..., None]
        self.order = (mask.flatten().cumsum(0) * mask.flatten()).view(mask.shape)  # from 1
        self._selected: list[Tensor] = []
        self._places: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_hidden = bool(args) and isinstance(args[0], Tensor) and args[0].ndim == 3
        if is_hidden and func is torch.Tensor.masked_scatter:
            return torch.where(self.mask, self._spread(args[2]), args[0])
        mask = _row_mask(args[1]) if is_hidden and func in _INDEXING else None
        if mask is not None and func is torch.Tensor.__getitem__:  # all rows, for the places
            self._selected.append(args[0].clone())
            return self._selected[-1]
        if mask is not None:
            return args[0].copy_(torch.where(mask[..., None], args[2], args[0]))
        if func is torch.Tensor.add and any(args[0] is each for each in self._selected):
            return args[0] + self._spread(args[1])
        if func is torch.Tensor.any and len(args) == 1 and args[0].ndim == 2:
            self._places.append(func(*args))
            return self._places[-1]
        if func is torch.Tensor.__bool__ and any(args[0] is each for each in self._places):
            return True  # putting rows into no places changes nothing
        return func(*args, **(kwargs or {}))

    def _spread(self, rows: Tensor) -> Tensor:
        rows = rows.reshape(-1, rows.shape[-1])
        return torch.cat([rows.new_zeros(1, rows.shape[-1]), rows])[self.order]


def _row_mask(index: Any) -> Tensor | None:
    """The mask of an index ``mask`` or ``(mask, :)`` that chooses tokens of a batch."""
    first = index[0] if isinstance(index, tuple) and len(index) == 2 else index
    is_mask = isinstance(first, Tensor) and first.dtype == torch.bool and first.ndim == 2
    return first if is_mask else None
