"""Find position embedding tables in a trial run, and gather them at other positions in a trace.

Models that count positions themselves count padding too, and some add an offset.
"""

from collections.abc import Collection, Iterator, Mapping
from itertools import chain, count
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.overrides import TorchFunctionMode

_TOKENS = (7, 3, 11, 5, 9)  # not consecutive anywhere, so that only positions are
_SPARE = 13


def trial_ids(vocab_size: int | None, special: Collection[int | None]) -> torch.Tensor:
    """Make token ids ``(1, count)`` for a trial run, without ``special`` ones.

    Some models skip padding, and the tokens of images need images.
    """
    ids = [token % vocab_size if vocab_size else token for token in _TOKENS]
    spare = next(token for token in count(_SPARE) if token not in special)
    return torch.tensor([[spare if token in special else token for token in ids]])


class _EmbeddingMode(TorchFunctionMode):
    """Handle embeddings: ``embed`` returns the result, or ``None`` to leave it to torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = None
        if func is torch.nn.functional.embedding:
            call = {**dict(zip(("input", "weight"), args, strict=False)), **kwargs}
            result = self.embed(call["input"], call["weight"])
        return func(*args, **kwargs) if result is None else result

    def embed(self, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
        raise NotImplementedError


class FindPositionTables(_EmbeddingMode):
    """Record which embedding tables are read at consecutive rows, and the first of these rows."""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[int, int | None] = {}

    def tables(self, module: torch.nn.Module) -> dict[str, int]:
        """Return the offset of each position table, by the parameter's name."""
        firsts = ((name, self._first.get(id(tensor))) for name, tensor in _named_tensors(module))
        return {name: first for name, first in firsts if first is not None}

    def embed(self, index: torch.Tensor, weight: torch.Tensor) -> None:
        ids = index.reshape(-1)
        consecutive = ids.shape[0] == len(_TOKENS) and bool((ids.diff() == 1).all())
        first = int(ids[0]) if consecutive else None
        if self._first.setdefault(id(weight), first) != first:
            self._first[id(weight)] = None  # also read for something else


class ReadPositionTables(_EmbeddingMode):
    """Read the position tables at ``positions``, whatever the model reads.

    Args:
        module: the model. ``torch.export`` replaces its tensors, so they are looked up by name.
        tables: as :meth:`FindPositionTables.tables` returns them.
        positions: ``(batch, sequence)``, counted from 0 in each batch item.
    """

    def __init__(
        self, module: torch.nn.Module, tables: Mapping[str, int], positions: torch.Tensor
    ) -> None:
        super().__init__()
        tensors = _named_tensors(module)
        self._offsets = {id(tensor): tables[name] for name, tensor in tensors if name in tables}
        self._positions = positions

    def embed(self, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
        offset = self._offsets.get(id(weight))
        if offset is None or statically_known_true(index.shape[-1] != self._positions.shape[-1]):
            return None
        return torch.embedding(weight, self._positions + offset if offset else self._positions)


def _named_tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    )
