"""Replace model code that torch cannot trace by code that it can."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from edgetie.sources.patching import set_attributes


@contextlib.contextmanager
def traceable(module: torch.nn.Module) -> Iterator[None]:
    """Make a model traceable while the context lasts.

    Loops over the experts that tokens are routed to run for every expert. Conversions to the
    precision that a module has return the module itself. Dynamic (NTK) rotary embeddings keep their
    angles: these change after the longest sequence in the configuration, where exported tables end.
    """
    dynamic = [part for part in module.modules() if getattr(part, "rope_type", None) == "dynamic"]
    original = torch.nn.Module.to

    def to(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None and all(tensor.dtype == dtype for tensor in self.parameters()):
            return self  # torch would replace the parameters that are traced by new ones
        return original(self, *args, **kwargs)

    fixed = [(part, "rope_type", "default") for part in dynamic]
    with set_attributes([(torch.nn.Module, "to", to), *fixed]), _AllIndices():
        yield


class _AllIndices(TorchFunctionMode):
    """Runs ``for index in mask.nonzero()`` for every index, whatever the mask.

    Such loops give each expert its tokens, and an expert without tokens adds nothing. Loops that
    compute something else give wrong logits, which the comparison with torch detects.
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
