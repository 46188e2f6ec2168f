"""What attention is, said once to torch instead of recovered from a graph.

transformers lets a caller register how attention and its mask are computed
(``AttentionInterface``, ``AttentionMaskInterface``). While a model is traced, edgetie's functions
stand there: a mask becomes a :class:`MaskSpec` (causal, perhaps with a window), attention becomes
one ``com.microsoft::GroupQueryAttention`` node that holds its own KV cache. Nothing here knows an
architecture; what this file cannot express raises :class:`UnfusableError`, and the exporter
traces the model again with plain attention.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from edgetie.errors import UnfusableError
from edgetie.export.recurrence.token_unroll import TokenUnroll

NAME = "edgetie"
_HEAD_SIZE_MULTIPLE = 8  # GroupQueryAttention rejects other head sizes


@dataclass(frozen=True)
class MaskSpec:
    """Causal attention over the last ``window`` positions (``None``: over all of them)."""

    window: int | None


@dataclass
class CacheLayer:
    """The KV cache of one attention layer: ``(batch, kv_heads, length, head_size)`` each.

    ``rows`` is set where every token is a row of its own.
    """

    past_key: torch.Tensor
    past_value: torch.Tensor
    rows: TokenUnroll | None = None
    appended: tuple[torch.Tensor, torch.Tensor] | None = None
    full: tuple[torch.Tensor, torch.Tensor] | None = None
    present: tuple[torch.Tensor, torch.Tensor] | None = None

    def append(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Past and new tokens together, as a cache's ``update`` returns them.

        The concatenation is dead code as soon as attention takes ``appended`` instead.
        """
        if self.rows is not None:
            key, value = self.rows.together(key), self.rows.together(value)
        self.appended = (key, value)
        self.full = (
            torch.cat([self.past_key, key], dim=-2),
            torch.cat([self.past_value, value], dim=-2),
        )
        return self.full

    @property
    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The cache after this call: from the fused operator, or the concatenation."""
        present = self.present or self.full
        if present is None:
            raise UnfusableError("a layer of the model never wrote its KV cache")
        return present


@dataclass
class Trace:
    """What the running trace knows: sequence lengths, the cache, the attention emitted so far."""

    seqlens_k: torch.Tensor
    total_length: torch.Tensor
    layers: list[CacheLayer]
    masks: list[tuple[torch.Tensor, MaskSpec]] = field(default_factory=list)

    def layer_of(self, key: torch.Tensor) -> CacheLayer:
        """The cache layer whose update returned ``key``."""
        for layer in self.layers:
            if layer.full is not None and layer.full[0] is key:
                return layer
        raise UnfusableError("attention over keys that come from no KV cache layer")


_current: list[Trace] = []


@contextlib.contextmanager
def tracing(trace: Trace) -> Iterator[Trace]:
    """Make ``trace`` the one that the registered functions write to."""
    _current.append(trace)
    try:
        yield trace
    finally:
        _current.pop()


def attend(
    query: torch.Tensor,
    layer: CacheLayer,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sink: torch.Tensor | None = None,
) -> torch.Tensor:
    """Emit one GroupQueryAttention for ``layer``.

    Args:
        query: ``(batch, heads, sequence, head_size)``, already rotated if the model rotates; or a
            token a row, as ``layer.rows`` says.
        layer: the cache layer, its new keys and values appended.
        scale: factor on the scores; ``None`` is ``1 / sqrt(head_size)``.
        window: how many positions a query sees, itself included; ``None`` is all.
        softcap: Gemma 2's ``softcap * tanh(scores / softcap)``.
        sink: ``(heads,)``, one more score for each head, of a key whose value is zero.

    Returns:
        ``(batch, sequence, heads, head_size)``, or a token a row.

    Raises:
        UnfusableError: for shapes the operator does not take.
    """
    assert layer.appended is not None
    key, value = layer.appended
    rows = layer.rows
    if rows is not None:
        query = rows.together(query)
    require_fusable(query, key, value)
    batch, heads, length, size = query.shape
    kv_heads = key.shape[1]

    def flat(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2).reshape(batch, length, x.shape[1] * size)

    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads}
    if scale is not None:
        attributes["scale"] = float(scale)
    if window is not None:
        attributes["local_window_size"] = int(window)
    if softcap is not None:
        attributes["softcap"] = float(softcap)
    trace = _current[-1]
    total = layer.past_key.shape[-2] + length
    cache_shape = (batch, kv_heads, total, size)
    output, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        [
            flat(query), flat(key), flat(value),
            layer.past_key, layer.past_value,
            trace.seqlens_k, trace.total_length,
            *([None] * 4 + [sink] if sink is not None else []),
        ],
        attributes,
        dtypes=[query.dtype, key.dtype, value.dtype],
        shapes=[(batch, length, heads * size), cache_shape, cache_shape],
        version=1,
    )  # fmt: skip
    layer.present = (present_key, present_value)
    output = output.reshape(batch, length, heads, size)
    return output if rows is None else rows.apart(output)


def require_fusable(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Refuse what GroupQueryAttention does not take.

    Raises:
        UnfusableError: saying which shape.
    """
    if query.ndim != 4:
        raise UnfusableError(f"attention over tensors of {query.ndim} axes")
    sizes = [tensor.shape[-1] for tensor in (query, key, value)]
    if len(set(sizes)) > 1 or sizes[0] % _HEAD_SIZE_MULTIPLE:
        raise UnfusableError(f"head sizes {sizes[0]}, {sizes[1]}, {sizes[2]}")
    heads, kv_heads = query.shape[1], key.shape[1]
    if heads % kv_heads:
        raise UnfusableError(f"{heads} query heads over {kv_heads} key heads")


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention call; returns ``(batch, sequence, heads, head_size)``."""
    if not _current:  # of an encoder beside the decoder
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, scaling=scaling, softcap=softcap, **kwargs
        )
    trace = _current[-1]
    for unsupported in ("position_bias", "head_mask"):
        if kwargs.get(unsupported) is not None:
            raise UnfusableError(f"attention with {unsupported}")
    spec = next((spec for mask, spec in trace.masks if mask is attention_mask), None)
    if spec is None:
        raise UnfusableError("attention with a mask of the model's own")
    layer = trace.layer_of(key)
    made = attend(
        query, layer,
        scale=scaling, window=spec.window, softcap=softcap, sink=kwargs.get("s_aux"),
    )  # fmt: skip
    return made, None


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Any,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> torch.Tensor | None:
    """transformers' mask call: a marker that stands for a recognised mask."""
    if not _current:
        from transformers.masking_utils import sdpa_mask

        return sdpa_mask(  # type: ignore[no-any-return]
            batch_size, q_length, kv_length, mask_function=mask_function, device=device, **kwargs
        )
    spec = classify_mask(mask_function, kwargs.get("local_size"))
    marker = torch.zeros((), device=device)
    _current[-1].masks.append((marker, spec))
    return marker


def classify_mask(mask_function: Any, local_size: int | None) -> MaskSpec:
    """Find out what a transformers mask function is by asking it.

    Args:
        mask_function: ``(batch, head, query, key) -> bool``, on index tensors.
        local_size: the window that transformers announces, if any; a guess to be confirmed.

    Raises:
        UnfusableError: if it is neither causal nor causal with that window.
    """
    window = None if local_size is None else int(local_size)
    rows = [0, 1, 2, 7] if window is None else [0, 1, window - 1, window, window + 1, 2 * window]
    with _disable_current_modes():
        q = torch.tensor(rows)[:, None]
        k = torch.arange(max(rows) + 2)[None, :]
        zero = torch.zeros((), dtype=torch.long)
        try:
            asked = torch.as_tensor(mask_function(zero, zero, q, k)).expand(len(rows), k.shape[1])
        except Exception as error:  # a mask closed over traced tensors
            raise UnfusableError(
                f"a mask that depends on the input ({type(error).__name__})"
            ) from error
        if isinstance(asked, FakeTensor):
            raise UnfusableError("a mask that depends on the input")
        expected = k <= q
        if window is not None:
            expected = expected & (k > q - window)
        if not torch.equal(asked.bool(), expected):
            raise UnfusableError("a mask that is neither causal nor a causal window")
    return MaskSpec(window)


class Broadcast(TorchFunctionMode):
    """Spells out what torch's attention repeats unasked and ONNX Runtime's does not: a single key
    head for every query head, a mask's single row for every query, and queries of a single row for
    every row of keys.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        names = ["query", "key", "value", "attn_mask", "dropout_p", "is_causal"]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        query, mask = given["query"], given.get("attn_mask")
        if query.ndim == 4 and given["key"].shape[1] == 1 != query.shape[1]:
            for name in ("key", "value"):
                given[name] = given[name].expand(-1, query.shape[1], -1, -1)
        if _is_one(query.shape[0]) and not _is_one(given["key"].shape[0]):
            given["query"] = query.expand(given["key"].shape[0], *query.shape[1:])
        if mask is not None and mask.ndim == 4 and _is_one(mask.shape[2]):
            given["attn_mask"] = mask.expand(-1, -1, query.shape[2], -1)
        return func(**given)


def _is_one(size: Any) -> bool:
    return statically_known_true(size == 1)


def register() -> str:
    """Register with transformers; returns the implementation's name."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    return NAME
