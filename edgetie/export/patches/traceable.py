"""Replace model code that torch cannot trace by code that it can."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DYNAMIC = "dynamic"
"""transformers' name for rotary embeddings whose angles depend on the length of the text."""


@contextlib.contextmanager
def traceable(module: torch.nn.Module) -> Iterator[None]:
    """Make a model traceable while the context lasts.

    Loops over the experts that tokens are routed to run for every expert. Conversions to the
    precision that a module has return the module itself. Dynamic (NTK) rotary embeddings keep their
    angles: these change after the longest sequence in the configuration, where exported tables end.
    """
    dynamic = [part for part in module.modules() if getattr(part, "rope_type", None) == _DYNAMIC]
    original = torch.nn.Module.to

    def to(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None and all(tensor.dtype == dtype for tensor in self.parameters()):
            return self  # torch would replace the parameters that are traced by new ones
        return original(self, *args, **kwargs)

    torch.nn.Module.to = to  # type: ignore[assignment,method-assign]
    for part in dynamic:
        vars(part)["rope_type"] = "default"
    try:
        with _AllIndices():
            yield
    finally:
        torch.nn.Module.to = original  # type: ignore[method-assign]
        for part in dynamic:
            vars(part)["rope_type"] = _DYNAMIC


class _AllIndices(TorchFunctionMode):
    """Runs ``for index in mask.nonzero()`` for every index, whatever the mask.

    How many indices are nonzero depends on data, how many there are does not. Such loops give each
    expert its tokens, and an expert without tokens adds nothing. The comparison of logits detects
    loops that compute something else, as few tokens are routed to few experts.
    """

    def __init__(self) -> None:
        super().__init__()
        self._results: list[tuple[torch.Tensor, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.unbind and args[1:] == (0,):  # what iter() calls
            for result, count in self._results:
                if result is args[0]:
                    return [[index] for index in range(count)]
        result = func(*args, **(kwargs or {}))
        if func in (torch.Tensor.nonzero, torch.nonzero) and not kwargs and args[0].ndim == 1:
            count = args[0].shape[0]
            if isinstance(count, int):
                self._results.append((result, count))
        return result
