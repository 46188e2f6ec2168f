"""Replace transformers' helpers for packed images by ones that trace for a single image.

Vision encoders that read images of any size get the patches of all images in one sequence, and a
grid ``(time, height, width)`` for each. transformers computes patch positions, attention windows
and the interpolation of position embeddings from the grids in Python loops, which cannot be traced.
With one image a call, they are arithmetic on the numbers of its patches.
"""

import contextlib
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from edgetie.export.images.known_sizes import Integer
from edgetie.sources.patching import set_attributes

_CONVOLUTIONS = (torch.conv2d, torch.conv3d)
_NAME = "flash_edgetie_segments"  # transformers gives cu_seqlens to names with "flash" in them


@contextlib.contextmanager
def single_image(module: torch.nn.Module, patches: int) -> Iterator[None]:
    """Run encoders on one image of so many patches while the context lasts."""
    from transformers import vision_utils
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(_NAME, _attend_in_segments)
    replaced = _SingleImage(patches)
    modules = {sys.modules[type(part).__module__] for part in module.modules()}
    modules = {each for each in modules if not each.__name__.startswith("torch.")}
    changes: list[tuple[Any, str, Any]] = [
        (each, "int", Integer) for each in {*modules, vision_utils}
    ]
    changes += [
        (each, name, getattr(replaced, name))
        for each in modules
        for name in vars(_SingleImage)
        if name.startswith("get_") and hasattr(each, name)
    ]
    changes += [
        (part.config, "_attn_implementation", _NAME)
        for part in module.modules()
        if hasattr(part, "config") and "cu_seqlens" in inspect.signature(part.forward).parameters
    ]
    with set_attributes(changes), _OneSegment():
        yield


def _attend_in_segments(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute transformers' attention call on ``(1, heads, patches, head_size)``.

    Keys and values may have fewer heads.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    mask = None
    if cu_seq_lens_q is not None and not _is_two(cu_seq_lens_q.shape[0]):
        index = torch.arange(query.shape[2])
        segment = (index[:, None] >= cu_seq_lens_q[1:]).sum(1)
        mask = (segment[:, None] == segment)[None, None]
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(query, key, value, attn_mask=mask, scale=scaling).transpose(1, 2), None


def _is_two(size: Any) -> bool:
    return isinstance(size, int) and size == 2


@contextlib.contextmanager
def all_images() -> Iterator[None]:
    """Keep all images in one tensor while the context lasts.

    Models drop images and patches that pad a batch, and split a batch into images.
    """
    with _KeepAll(), _OneSegment():
        yield


class _KeepAll(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__:
            index = args[1]
            if isinstance(index, Tensor) and index.dtype == torch.bool:
                return args[0].flatten(0, index.ndim - 1)
        if func is torch.Tensor.unbind and isinstance(args[0].shape[0], torch.SymInt):
            return (args[0],)
        if func is torch.Tensor.__len__ and isinstance(args[0].shape[0], torch.SymInt):
            return 1  # list() asks for it first
        return func(*args, **(kwargs or {}))


class _OneSegment(TorchFunctionMode):
    """Splits a tensor into one part without reading the part's size.

    A convolution over the whole of its input, a patch, is a matrix product. A sum of embeddings
    is a product and a sum.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CONVOLUTIONS and args[0].shape[2:] == args[1].shape[2:]:
            output = torch.nn.functional.linear(args[0].flatten(1), args[1].flatten(1), args[2])
            return output.view(*output.shape, *[1] * (args[1].ndim - 2))
        if func is torch.nn.functional.embedding_bag and kwargs and kwargs.get("mode") == "sum":
            return (args[1][args[0]] * kwargs["per_sample_weights"][..., None]).sum(1)
        if func in (torch.split, torch.Tensor.split):
            sizes = args[1] if len(args) > 1 else (kwargs or {}).get("split_size_or_sections")
            if isinstance(sizes, (list, tuple)) and len(sizes) == 1:
                return (args[0],)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _SingleImage:
    """transformers' functions of the patches of images, for one image of ``count`` patches.

    The methods have the names and the arguments of the functions that they replace.
    """

    count: int

    def get_max_seqlen(self, cu_seqlens: Tensor, config: Any, **_: Any) -> int:
        return self.count

    def get_vision_window_index(
        self,
        grid_thw: Tensor,
        spatial_merge_size: int,
        window_size: int,
        patch_size: int,
        kwargs: Any = None,
    ) -> tuple[Tensor, Tensor]:
        unit = spatial_merge_size**2
        side = window_size // spatial_merge_size // patch_size
        width = grid_thw[0, 2] // spatial_merge_size
        index = torch.arange(self.count // unit)
        windows = (width + side - 1) // side
        window = index // width // side * windows + index % width // side
        order = torch.argsort(window * (self.count // unit) + index)
        sizes = (window[:, None] == index).sum(0)  # of windows; the last ones do not exist
        starts = torch.nn.functional.pad(sizes.cumsum(0) * unit, (1, 0))
        return order, starts.to(torch.int32)
