"""Replace model code that torch cannot trace by code that it can."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from edgetie.sources.patching import environment, set_attributes

_NO_CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"


@contextlib.contextmanager
def traceable(module: torch.nn.Module) -> Iterator[None]:
    """Make a model traceable while the context lasts.

    Loops over the experts that tokens are routed to run for every expert. Masks are computed by
    broadcasting instead of vmap. Checks of values are left out. Conversions to the
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

    changes: list[tuple[Any, str, Any]] = [(part, "rope_type", "default") for part in dynamic]
    changes.append((torch.nn.Module, "to", to))
    if masks := sys.modules.get("transformers.masking_utils"):
        changes.append((masks, "_vmap_expansion_sdpa", _broadcast))
    with set_attributes(changes), environment({_NO_CHECKS: "1"}), _AllIndices():
        yield


def _broadcast(mask: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Compute a mask of batch item, head, query and key for all of them, without vmap."""

    def compute(*indices: torch.Tensor) -> torch.Tensor:
        shapes = ((-1, 1, 1, 1), (1, -1, 1, 1), (1, 1, -1, 1), (1, 1, 1, -1))
        views = (index.view(shape) for index, shape in zip(indices, shapes, strict=True))
        return mask(*views).expand(*(index.shape[0] for index in indices))

    return compute


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
