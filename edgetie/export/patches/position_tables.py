"""Tables of positions, found by watching a model and read at the positions the wrapper knows.

A model that counts positions itself counts padding too, and some count from an offset of their own
even when positions are given. One trial run shows which tables are read at consecutive rows; while
the model is traced, these lookups take the wrapper's positions instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.overrides import TorchFunctionMode

_TOKENS = (7, 3, 11, 5, 9)  # nowhere consecutive, so that only positions are


def trial_ids(vocab_size: int | None, pad_token_id: int | None) -> torch.Tensor:
    """Token ids ``(1, count)`` for a trial run; padding, which some models do not count, is not
    among them.
    """
    ids = [token % vocab_size if vocab_size else token for token in _TOKENS]
    return torch.tensor([[13 if token == pad_token_id else token for token in ids]])


class WatchTables(TorchFunctionMode):
    """Notes which tables are looked up at consecutive rows, and from which row on."""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[int, int | None] = {}

    def tables(self, module: torch.nn.Module) -> dict[str, int]:
        """The offset of each table of positions, by the parameter's name."""
        found = {}
        for name, tensor in _tensors(module):
            first = self._first.get(id(tensor))
            if first is not None:
                found[name] = first
        return found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.embedding:
            index, weight = _lookup(args, kwargs)
            rows = index.reshape(-1)
            steps = rows.shape[0] == len(_TOKENS) and bool((rows.diff() == 1).all())
            first = int(rows[0]) if steps else None
            if self._first.setdefault(id(weight), first) != first:
                self._first[id(weight)] = None  # also read for something else
        return func(*args, **kwargs)


class ReadTables(TorchFunctionMode):
    """Reads the tables of positions at ``positions``, whatever the model asks for.

    Args:
        module: whose tables; names are looked up now, as ``torch.export`` puts other tensors in the
            place of parameters.
        tables: as :meth:`WatchTables.tables` returns them.
        positions: ``(batch, sequence)``, counted from 0 in each row.
    """

    def __init__(
        self, module: torch.nn.Module, tables: Mapping[str, int], positions: torch.Tensor
    ) -> None:
        super().__init__()
        self._offsets = {id(t): tables[name] for name, t in _tensors(module) if name in tables}
        self._positions = positions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.embedding:
            index, weight = _lookup(args, kwargs)
            offset = self._offsets.get(id(weight))
            if offset is not None and _may_be_equal(index.shape[-1], self._positions.shape[-1]):
                rows = self._positions + offset if offset else self._positions
                return torch.embedding(weight, rows)
        return func(*args, **kwargs)


def _lookup(args: Any, kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    given = {**dict(zip(["input", "weight"], args, strict=False)), **kwargs}
    return given["input"], given["weight"]


def _tensors(module: torch.nn.Module) -> Any:
    return chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    )


def _may_be_equal(one: Any, other: Any) -> bool:
    return not statically_known_true(one != other)
