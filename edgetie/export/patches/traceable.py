"""What models do that torch cannot trace, done so that it can."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DYNAMIC = "dynamic"
"""What transformers calls rotary embeddings whose angles follow the length of the text."""


@contextlib.contextmanager
def traceable(module: torch.nn.Module) -> Iterator[None]:
    """Let a model loop over the experts that were chosen, ask for the precision that it has, and
    keep the angles of its rotary embeddings: dynamic ones (NTK) change behind the longest sequence
    that its configuration knows, where exported tables end.
    """
    dynamic = [part for part in module.modules() if getattr(part, "rope_type", None) == _DYNAMIC]
    original = torch.nn.Module.to

    def to(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None and all(tensor.dtype == dtype for tensor in self.parameters()):
            return self  # torch would put new parameters in the place of those that are traced
        return original(self, *args, **kwargs)

    torch.nn.Module.to = to  # type: ignore[assignment,method-assign]
    for part in dynamic:
        vars(part)["rope_type"] = "default"
    try:
        with _EveryIndex():
            yield
    finally:
        torch.nn.Module.to = original  # type: ignore[method-assign]
        for part in dynamic:
            vars(part)["rope_type"] = _DYNAMIC


class _EveryIndex(TorchFunctionMode):
    """Runs ``for index in chosen.nonzero()`` for every index there is.

    How many are chosen depends on data, how many there are does not. Such loops give each expert
    the tokens that chose it: an expert that none chose is given none, and adds nothing. A loop that
    does something else is found when logits are compared, as few tokens choose few experts.
    """

    def __init__(self) -> None:
        super().__init__()
        self._found: list[tuple[torch.Tensor, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.unbind and args[1:] == (0,):  # what iter() calls
            for found, count in self._found:
                if found is args[0]:
                    return [[index] for index in range(count)]
        result = func(*args, **(kwargs or {}))
        if func in (torch.Tensor.nonzero, torch.nonzero) and not kwargs and args[0].ndim == 1:
            count = args[0].shape[0]
            if isinstance(count, int):
                self._found.append((result, count))
        return result
