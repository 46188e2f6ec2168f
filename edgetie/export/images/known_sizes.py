"""Trace models that read the size of an image from a tensor.

Vision encoders that read images of any size get the patches of all images in one sequence, and a
tensor with the height and width of each. They read numbers from it for loops, splits and shapes,
which torch cannot trace. With one image a call, these numbers are known as dimensions of its
pixels, so they are attached to the tensor, and arithmetic on it is done on both.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_ARITHMETIC = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "floor_divide": operator.floordiv,
    "mod": operator.mod,
    "remainder": operator.mod,
}
_SAME = {"to", "long", "int", "cpu", "clone", "contiguous"}
_REDUCTIONS: dict[str, Any] = {"prod": np.prod, "sum": np.sum, "cumsum": np.cumsum}
_NUMBERS = {"tolist", "item"}
_TAKE_SIZES = {
    *("view", "reshape", "expand", "repeat", "unflatten", "arange", "split"),
    *("zeros", "ones", "full", "new_zeros", "new_ones", "new_full"),
}


class KnownSizes(TorchFunctionMode):
    """Keeps the numbers in tensors of sizes while the context lasts."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers: dict[int, tuple[Tensor, Any]] = {}  # by id, with the tensor to keep it alive

    def attach(self, tensor: Tensor, numbers: Any) -> Tensor:
        """Attach the numbers in a tensor, as nested lists."""
        self._numbers[id(tensor)] = tensor, np.array(numbers, dtype=object)
        return tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__.strip("_")
        first = self._of(args[0]) if args else None
        if first is not None and name in _NUMBERS:
            return first.tolist() if first.ndim else first.item()
        if first is not None and name in ("unbind", "iter"):
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            pairs = zip(torch.Tensor.unbind(args[0], dim), np.moveaxis(first, dim, 0), strict=True)
            parts = tuple(self.attach(part, numbers) for part, numbers in pairs)
            return iter(parts) if name == "iter" else parts
        if name == "repeat_interleave" and (repeats := self._of(_second(args, kwargs))) is not None:
            return self._repeat(args[0], repeats.tolist())
        if name in _TAKE_SIZES:
            args, kwargs = self._plain(args), self._plain(kwargs)
        elif name == "getitem":
            args = (args[0], self._plain(args[1]))
        result = func(*args, **kwargs)
        numbers = self._compute(name, first, args, kwargs)
        if numbers is not None:
            return self.attach(result, numbers)
        if first is not None and (result is args[0] or name == "setitem"):  # written in place
            del self._numbers[id(args[0])]
        return result

    def _of(self, value: Any) -> Any:
        """The numbers in a tensor, or ``None``."""
        return self._numbers[id(value)][1] if id(value) in self._numbers else None

    def _plain(self, value: Any) -> Any:
        """Replace tensors by the numbers in them."""
        if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
            return type(value)(self._plain(each) for each in value)
        if isinstance(value, dict):
            return {key: self._plain(each) for key, each in value.items()}
        if isinstance(value, slice):
            return slice(*(self._plain(each) for each in (value.start, value.stop, value.step)))
        numbers = self._of(value)
        return value if numbers is None or numbers.ndim else numbers.item()

    def _compute(self, name: str, first: Any, args: Any, kwargs: Any) -> Any:
        """Compute the numbers in a result, ``None`` if they are not known."""
        second = _second(args, kwargs)
        if name in _ARITHMETIC and isinstance(second, (int, torch.SymInt, Tensor)):
            other = second if not isinstance(second, Tensor) else self._of(second)
            unknown = first is None or other is None
            return None if unknown else _ARITHMETIC[name](first, other)
        if first is None:
            return None
        if name in _SAME:
            return first
        if name in _REDUCTIONS:
            dim = kwargs.get("dim", second if isinstance(second, int) else None)
            return _REDUCTIONS[name](first, axis=dim)
        if name == "getitem" and not isinstance(second, Tensor):
            return first[second]
        if name == "pad" and not any(second[2:]):
            return np.pad(first, [(0, 0)] * (first.ndim - 1) + [tuple(second[:2])])
        return None

    def _repeat(self, tensor: Tensor, repeats: list[Any]) -> Tensor:
        numbers = self._of(tensor)
        parts = [
            part.expand(count, *part.shape) for part, count in zip(tensor, repeats, strict=True)
        ]
        result = torch.cat(parts)
        if numbers is not None and all(isinstance(count, int) for count in repeats):
            self.attach(result, np.repeat(numbers, repeats, axis=0))
        return result


def _second(args: Any, kwargs: Any) -> Any:
    return args[1] if len(args) > 1 else next(iter(kwargs.values()), None)


class _Integer(type):
    """The class of a replacement for ``int`` that leaves dimensions symbolic."""

    def __call__(cls, value: Any = 0) -> Any:
        number = value.item() if isinstance(value, Tensor) else value
        if isinstance(number, (torch.SymInt, torch.SymFloat)):
            return math.trunc(number)  # type: ignore[arg-type]  # stays symbolic
        return int(number)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, int)


class Integer(int, metaclass=_Integer):
    """``int`` for modules that are traced; ``int`` itself makes a dimension a number."""
