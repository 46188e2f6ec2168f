"""Wrap a causal language model so that it is traced with one signature."""

import inspect
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgetie.bundle.names import LAST_TOKEN_NODE
from edgetie.errors import UnfusableError
from edgetie.export.attention.broadcast import AttentionMode, BroadcastAttention
from edgetie.export.attention.group_query_attention import (
    AttentionTrace,
    CacheLayer,
    attend,
    tracing,
)
from edgetie.export.attention.transformers_cache import (
    build_cache,
    recurrent_states,
    states_in_attributes,
)
from edgetie.export.patches.position_tables import ReadPositionTables
from edgetie.export.recurrence.token_unroll import TokenUnroll
from edgetie.export.tasks.base import logits_of
from edgetie.graph.tensors import CacheTensor
from edgetie.sources.source import cache_keyword


class _CachedAttention(AttentionMode):
    """Compute the n-th ``scaled_dot_product_attention`` with the cache of the n-th layer."""

    def __init__(self, layers: list[CacheLayer]) -> None:
        super().__init__()
        self._layers = iter(layers)

    def attend(self, call: dict[str, Any]) -> Tensor:
        query, key, value, scale = causal_arguments(call)
        layer = next(self._layers)
        layer.append(key, value)
        return attend(query, layer, scale=scale).transpose(1, 2)


def causal_arguments(call: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, float | None]:
    """Query, key, value and scale of a call of ``scaled_dot_product_attention``.

    Raises:
        UnfusableError: if it is not causal.
    """
    if call.get("attn_mask") is not None or not call.get("is_causal"):
        raise UnfusableError("scaled_dot_product_attention that is not is_causal=True")
    return call["query"], call["key"], call["value"], call.get("scale")


@dataclass(frozen=True)
class CausalCall:
    """How a causal language model is called.

    Attributes:
        mode: with transformers' cache object, with ``position_ids`` and causal
            ``scaled_dot_product_attention``, or without a cache.
        position_ids: whether a module that takes no cache takes them.
        position_tables: offsets of the embeddings of positions, see :mod:`position_tables`.
        encoder_decoder_cache: whether the cache is that of an encoder-decoder model.
        state_attributes: attributes of modules that have recurrent states, by the state's name.
    """

    mode: Literal["transformers", "positions", "no_cache"]
    position_ids: bool = False
    position_tables: dict[str, int] = field(default_factory=dict)
    encoder_decoder_cache: bool = False
    state_attributes: dict[str, str] = field(default_factory=dict)


class CausalLM(nn.Module):
    """The wrapper that is traced.

    The inputs are ``input_ids (batch, sequence)``, ``attention_mask (batch, past + sequence)`` and
    the cache: ``(batch, kv_heads, past, head_size)``, or ``(batch, ...)`` for recurrent states.
    GroupQueryAttention needs the valid tokens of a batch item at the start of its cache, so they
    are moved to the front: padding on either side gives the same tokens.

    Args:
        model: the language model.
        call: how it is called.
        cache: the tensors of its cache.
        fused: emit GroupQueryAttention, or let the model compute its own attention.
        last_only: logits of the last token of each batch item, ``(batch, 1, vocabulary)``, or all.
    """

    def __init__(
        self,
        model: nn.Module,
        call: CausalCall,
        cache: tuple[CacheTensor, ...],
        *,
        fused: bool,
        last_only: bool,
    ) -> None:
        super().__init__()
        self.model, self.call, self.fused, self.last_only = model, call, fused, last_only
        self.names = [tensor.name for tensor in cache]
        self.recurrent = any(not tensor.grows for tensor in cache)
        self.takes_use_cache = "use_cache" in inspect.signature(model.forward).parameters
        self.keyword = cache_keyword(model) or ""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        length = input_ids.shape[1]
        valid = attention_mask[:, -length:]
        indices = torch.arange(length)
        if self.recurrent and not self.fused:
            raise UnfusableError("recurrent states with attention that is not GroupQueryAttention")
        if self.call.mode == "transformers" and not self.fused:
            positions = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -length:]
            last = (valid * (indices + 1)).argmax(1)
            with BroadcastAttention():
                logits, present = self._run_batch(input_ids, attention_mask, positions, past)
        else:
            first = valid.argmax(1)[:, None]
            ids = input_ids.gather(1, torch.minimum(indices + first, indices[-1]))
            total, count = attention_mask.sum(1), valid.sum(1)
            positions = (total - count)[:, None] + indices
            last = count - 1
            trace = AttentionTrace(
                seqlens_k=(total - 1).to(torch.int32),
                total_length=torch.full((1,), attention_mask.shape[1], dtype=torch.int32),
                layers=[],
            )
            with tracing(trace):
                if self.recurrent:
                    is_valid = indices < count[:, None]
                    logits, present = self._run_unrolled(ids, is_valid, positions, past, trace)
                else:
                    mask = (torch.arange(attention_mask.shape[1])[None] < total[:, None]).long()
                    logits, present = self._run_batch(ids, mask, positions, past, trace)
            if not self.last_only:
                original = torch.maximum(indices - first, indices[0])[..., None]
                logits = _gather(logits, original, (*ids.shape, logits.shape[-1]))
        if self.last_only:
            shape = (logits.shape[0], 1, logits.shape[-1])
            logits = _gather(logits, last[:, None, None], shape, LAST_TOKEN_NODE)
        return (logits, *present)

    def _run_batch(
        self,
        ids: Tensor,
        mask: Tensor,
        positions: Tensor,
        past: tuple[Tensor, ...],
        trace: AttentionTrace | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run on an aligned batch in a trace, or with the model's own attention and masks."""
        layers = cache_layers(past)
        if trace is not None:
            trace.layers = layers
        if self.call.mode == "transformers":
            cache = build_cache(dict(enumerate(layers)))
            output = self._call_transformers(ids, mask, positions, cache)
        else:
            kwargs: dict[str, Any] = {"position_ids": positions} if self.call.position_ids else {}
            if self.takes_use_cache and not layers:
                kwargs["use_cache"] = False
            with _CachedAttention(layers) if layers else nullcontext():
                output = self.model(ids, **kwargs)
        if trace is not None:
            _require_attention(layers)
        return logits_of(output), [tensor for layer in layers for tensor in layer.result]

    def _run_unrolled(
        self,
        ids: Tensor,
        is_valid: Tensor,
        positions: Tensor,
        past: tuple[Tensor, ...],
        trace: AttentionTrace,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run on every token as a batch item, see :mod:`token_unroll`, on an aligned batch."""
        unroll = TokenUnroll(ids)
        tensors = dict(zip(self.names, past, strict=True))
        layers: dict[int, CacheLayer] = {}
        states: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            number, part = name.split(".")
            if part == "key":
                layers[int(number)] = CacheLayer(tensor, tensors[f"{number}.value"], unroll)
            elif part != "value":
                states[name] = unroll.past_state(tensor)
        trace.layers = list(layers.values())
        attributes = self.call.state_attributes
        in_attributes = {path: states[name] for name, path in attributes.items()}
        # clones, as a model may write into its cache
        in_cache = {name: s.clone() for name, s in states.items() if name not in attributes}
        with states_in_attributes(self.model, in_attributes) as written:
            cache = build_cache(layers, in_cache)
            output = self._call_transformers(
                unroll.split(ids), None, unroll.split(positions), cache
            )
        after = recurrent_states(cache)
        after |= {name: written[path] for name, path in attributes.items()}
        present = {
            name: unroll.present_state(after[name], states[name], is_valid) for name in states
        }
        _require_attention(trace.layers)
        for index, layer in layers.items():
            present[f"{index}.key"], present[f"{index}.value"] = layer.result
        logits = logits_of(output)
        return logits.reshape(*ids.shape, logits.shape[-1]), [present[name] for name in self.names]

    def _call_transformers(
        self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any
    ) -> Any:
        """Call with a cache; models that count positions themselves read ``positions``."""
        if self.call.encoder_decoder_cache:
            from transformers.cache_utils import DynamicCache, EncoderDecoderCache

            cache = EncoderDecoderCache(cache, DynamicCache())
        kwargs = {"attention_mask": mask, "position_ids": positions, self.keyword: cache}
        with ReadPositionTables(self.model, self.call.position_tables, positions):
            return self.model(input_ids=ids, use_cache=True, **kwargs)


def cache_layers(past: tuple[Tensor, ...]) -> list[CacheLayer]:
    """Layers over cache tensors, keys and values in turn."""
    return [CacheLayer(key, value) for key, value in zip(past[::2], past[1::2], strict=True)]


def _require_attention(layers: list[CacheLayer]) -> None:
    if any(layer.present is None for layer in layers):
        raise UnfusableError("a layer with a KV cache but no attention call")


def _gather(data: Tensor, indices: Tensor, shape: Any, name: str | None = None) -> Tensor:
    """Emit GatherND with ``batch_dims=1``; metadata of the node has its ``name``."""
    return torch.onnx.ops.symbolic(
        "GatherND",
        [data, indices],
        {"batch_dims": 1},
        dtype=data.dtype,
        shape=shape,
        version=13,
        metadata_props={"edgetie.name": name} if name else None,
    )
