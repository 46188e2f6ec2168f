"""Register an attention function with transformers that emits GroupQueryAttention.

A mask becomes a marker for "causal, perhaps with a sliding window".
"""

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from edgetie.errors import UnfusableError
from edgetie.export.attention.group_query_attention import attend, current_trace

NAME = "edgetie"


def register() -> str:
    """Register with transformers and return the implementation's name."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(NAME, compute_attention)
    AttentionMaskInterface.register(NAME, build_mask)
    return NAME


def compute_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute transformers' attention call: ``(batch, sequence, heads, head_size)``."""
    trace = current_trace()
    if trace is None:  # of an encoder next to the decoder
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, scaling=scaling, softcap=softcap, **kwargs
        )
    for unsupported in ("position_bias", "head_mask"):
        if kwargs.get(unsupported) is not None:
            raise UnfusableError(f"attention with {unsupported}")
    windows = [window for mask, window in trace.masks if mask is attention_mask]
    if not windows:
        raise UnfusableError("attention with a mask of the model's own")
    output = attend(
        query, trace.layer_of(key),
        scale=scaling, window=windows[0], softcap=softcap, sink=kwargs.get("s_aux"),
    )  # fmt: skip
    return output, None


def build_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Any,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> torch.Tensor | None:
    """Answer transformers' mask call with a marker that stands for a recognised mask."""
    trace = current_trace()
    if trace is None:
        from transformers.masking_utils import sdpa_mask

        return sdpa_mask(  # type: ignore[no-any-return]
            batch_size, q_length, kv_length, mask_function=mask_function, device=device, **kwargs
        )
    window = kwargs.get("local_size")
    window = None if window is None else int(window)
    require_causal(mask_function, window)
    marker = torch.zeros((), device=device)
    trace.masks.append((marker, window))
    return marker


def require_causal(mask_function: Any, window: int | None) -> None:
    """Raise :class:`UnfusableError` unless a mask is causal, with that sliding window if there is
    one. ``mask_function`` is transformers' ``(batch, head, query, key) -> bool`` on index tensors.
    """
    queries = [0, 1, 2, 7] if window is None else [0, 1, window - 1, window, window + 1, 2 * window]
    with _disable_current_modes():
        q = torch.tensor(queries)[:, None]
        k = torch.arange(max(queries) + 2)[None, :]
        zero = torch.zeros((), dtype=torch.long)
        try:
            mask = torch.as_tensor(mask_function(zero, zero, q, k)).expand(len(q), k.shape[1])
        except Exception as error:  # a mask closed over traced tensors
            raise UnfusableError(
                f"a mask that depends on the input ({type(error).__name__})"
            ) from error
        if isinstance(mask, FakeTensor):
            raise UnfusableError("a mask that depends on the input")
        expected = k <= q
        if window is not None:
            expected = expected & (k > q - window)
        if not torch.equal(mask.bool(), expected):
            raise UnfusableError("a mask that is neither causal nor a causal window")
