"""Encoder-decoder models: two graphs. The encoder also computes the cache of cross-attention."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgetie.bundle.names import DECODER, ENCODER, ENCODER_MASK
from edgetie.export.attention.broadcast import BroadcastAttention
from edgetie.export.attention.mask_branches import ResolveMaskBranches
from edgetie.export.attention.transformers_cache import build_cache
from edgetie.export.attention.window_padding import example_length, pad_to_window
from edgetie.export.comparison import (
    Agreement,
    Array,
    DecoderRunner,
    ReferenceRun,
    cpu_session,
    largest_error,
)
from edgetie.export.tasks.base import (
    Graph,
    GraphInput,
    Task,
    cache_inputs,
    key_value,
    logits_of,
    read_max_positions,
    token_input,
    torch_logits,
)
from edgetie.export.tasks.causal_model import cache_layers
from edgetie.graph.tensors import CacheTensor
from edgetie.sources.source import cache_keyword

_SOURCE, _SEQUENCE, _PAST = 7, 3, 5  # example sizes to trace with; all of them are dynamic
_SOURCE_TOKENS, _SHORT = 12, 7  # compared with torch
_TOKENS, _PREFIX = 8, 4
_MASK = "attention_mask"
ENCODED = "encoder_sequence_length"
"""Name of the dimension of the encoder's inputs and of its output."""


@dataclass(frozen=True)
class Seq2SeqTask(Task):
    """See :class:`edgetie.export.tasks.base.Task`; ``cache`` is that of self-attention.

    Attributes:
        cross: the cache of cross-attention.
        hidden_size: of the encoder's output.
        output_class: that of the encoder's output, if the model needs more than a tuple.
        source_length: tokens of an example that the encoder is traced with.
    """

    name = "seq2seq-lm"

    cross: tuple[CacheTensor, ...]
    hidden_size: int
    output_class: type[Any] | None = field(default=None, kw_only=True)
    source_length: int = field(default=_SOURCE, kw_only=True)

    def encoder_inputs(self, dtype: torch.dtype) -> tuple[list[GraphInput], int]:
        """Inputs to trace the encoder with, and its output's length; ``dtype`` is the weights'."""
        length = self.source_length
        names = ("input_ids", _MASK)
        return [token_input(name, length, ENCODED) for name in names], length

    def encode(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Run the encoder; returns its last hidden state ``(batch, length, hidden_size)``."""
        hidden: Tensor = model.get_encoder()(**inputs)[0]
        return hidden

    def graphs(self, module: nn.Module, *, fused: bool, last_only: bool) -> list[Graph]:
        dtype = next(module.parameters()).dtype
        inputs, length = self.encoder_inputs(dtype)
        encoder = Graph(
            file=ENCODER,
            module=_Encoder(module, self, tuple(value.name for value in inputs)),
            tensors=tuple(inputs),
            outputs=["last_hidden_state", *(tensor.present for tensor in self.cross)],
            parameters=0,
        )
        masks = [replace(value, name=ENCODER_MASK) for value in inputs if value.name == _MASK]
        names = {name for value in inputs for name in value.axes.values()}
        dimension = ENCODED if ENCODED in names else None
        decoder = Graph(
            file=DECODER,
            module=_Decoder(module, self, bool(masks)),
            tensors=(
                token_input("input_ids", _SEQUENCE),
                *masks,
                *cache_inputs(self.cross, length, dtype, dimension),
                *cache_inputs(self.cache, _PAST, dtype),
            ),
            outputs=["logits", *(tensor.present for tensor in self.cache)],
            parameters=1,
        )
        return [encoder, decoder]

    def run_reference(self, module: nn.Module) -> ReferenceRun:
        count = max(_SOURCE_TOKENS, self.source_length)
        random = np.random.default_rng(0)
        source = random.integers(0, self.vocab_size, (1, min(count, self.max_positions or count)))
        target = self.decoder_tokens(random)
        logits = [
            torch_logits(module, input_ids=ids, decoder_input_ids=target)[0]
            for ids in (source, source[:, :_SHORT])
        ]
        inputs = {"input_ids": source, "decoder_input_ids": target}
        return ReferenceRun(inputs, np.concatenate(logits))

    def decoder_tokens(self, random: np.random.Generator) -> Array:
        """Random tokens of the decoder ``(1, count)``."""
        count = min(_TOKENS, self.max_positions or _TOKENS)
        return random.integers(0, self.vocab_size, (1, count))

    def encoder_feeds(
        self, reference: ReferenceRun, dtype: type[Any]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Feeds of the encoder: one batch item, and a batch of two that begins with the same."""
        source = reference.inputs["input_ids"]
        batch = np.repeat(source, 2, axis=0)
        mask = np.ones_like(batch)
        batch[1, _SHORT:], mask[1, _SHORT:] = 0, 0
        return {"input_ids": source, _MASK: mask[:1]}, {"input_ids": batch, _MASK: mask}

    def compare(self, directory: Path, reference: ReferenceRun, dtype: type[Any]) -> Agreement:
        target = reference.inputs["decoder_input_ids"]
        count = target.shape[1]
        first, second = reference.logits[:count], reference.logits[count:]
        with cpu_session(directory / ENCODER) as encoder:
            single, pair = (
                [*([feeds[_MASK]] if _MASK in feeds else []), *encoder.run(None, feeds)[1:]]
                for feeds in self.encoder_feeds(reference, dtype)
            )
        with cpu_session(directory / DECODER) as session:
            run = DecoderRunner(session, self.cache, dtype)
            prefill, cached = run.errors(
                lambda start, end: [target[:, start:end], *single], first, min(_PREFIX, count)
            )
            logits, _ = run([np.repeat(target, 2, axis=0), *pair])
            padded = max(largest_error(logits[0], first), largest_error(logits[1], second))
        return reference.agreement(prefill, cached, padded)


class _Encoder(nn.Module):
    """The encoder, and the keys and values that cross-attention computes from its output."""

    def __init__(self, model: nn.Module, task: Seq2SeqTask, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.task, self.inputs = model, task, inputs
        self.keyword = cache_keyword(model) or ""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        model: Any = self.model
        kwargs = dict(zip(self.inputs, inputs, strict=True))
        mask = {name: kwargs[name] for name in kwargs if name == _MASK}
        cache = empty_cache()
        with BroadcastAttention():
            length = pad_to_window(model, kwargs)
            with ResolveMaskBranches(kwargs.get(_MASK)):
                hidden = self.task.encode(model, kwargs)
            hidden = hidden if length is None else hidden[:, :length]
            ids = torch.zeros(hidden.shape[0], 1, dtype=torch.long)
            # all that does not become a key or value of cross-attention is dead code
            _run_decoder(model, hidden, self.task.output_class, ids, mask | {self.keyword: cache})
        layers = cache.cross_attention_cache.layers
        return (hidden, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))


class _Decoder(nn.Module):
    """The decoder, with cross-attention's keys and values as inputs, after the encoder's mask."""

    def __init__(self, model: nn.Module, task: Seq2SeqTask, has_mask: bool) -> None:
        super().__init__()
        self.model, self.task, self.has_mask = model, task, has_mask
        self.keyword = cache_keyword(model) or ""

    def forward(self, input_ids: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        from transformers.cache_utils import EncoderDecoderCache

        mask, tensors = inputs[: self.has_mask], inputs[self.has_mask :]
        count = len(self.task.cross)
        cross, own = cache_layers(tensors[:count]), cache_layers(tensors[count:])
        cache = EncoderDecoderCache(*(build_cache(dict(enumerate(part))) for part in (own, cross)))
        cache.is_updated = dict.fromkeys(range(len(cross)), True)
        # the model reads only its shape: keys and values computed from it are in the cache
        shape = mask[0].shape if mask else (tensors[0].shape[0], tensors[0].shape[2])
        hidden = torch.zeros(*shape, self.task.hidden_size, dtype=tensors[0].dtype)
        kwargs = {**dict(zip((_MASK,), mask, strict=False)), self.keyword: cache}
        with BroadcastAttention():
            output = _run_decoder(self.model, hidden, self.task.output_class, input_ids, kwargs)
        return (logits_of(output), *(tensor for layer in own for tensor in layer.result))


def _run_decoder(
    model: nn.Module, hidden: Tensor, output_class: type[Any] | None, ids: Tensor, kwargs: Any
) -> Any:
    """Run the decoder on an encoder's output, by default of the class with the most fields."""
    from transformers.modeling_outputs import MoEModelOutput

    encoded = (output_class or MoEModelOutput)(last_hidden_state=hidden)
    return model(encoder_outputs=encoded, decoder_input_ids=ids, use_cache=True, **kwargs)


def trial_run(module: nn.Module, config: Any) -> Seq2SeqTask:
    """Run the model once on a few tokens."""
    ids = torch.ones(1, _SHORT, dtype=torch.long)
    model: Any = module
    with torch.no_grad():
        hidden = model.get_encoder()(input_ids=ids)[0]
        output = _run_decoder(model, hidden, None, ids[:, :2], {})
    own, cross = describe_caches(module, output)
    return Seq2SeqTask(
        logits_of(output).shape[-1],
        read_max_positions(config, module),
        cross,
        hidden.shape[-1],
        cache=own,
        source_length=example_length(module, _SOURCE),
    )


def empty_cache() -> Any:
    """Make a cache to which decoders of any number of layers add theirs."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def describe_caches(
    module: nn.Module, output: Any
) -> tuple[tuple[CacheTensor, ...], tuple[CacheTensor, ...]]:
    """Describe the caches of self-attention and of cross-attention in a model's output.

    Raises:
        TypeError: if one is missing.
    """
    cache = getattr(output, cache_keyword(module) or "", None)
    caches: list[tuple[CacheTensor, ...]] = []
    for part, side in (("self_attention_cache", "decoder"), ("cross_attention_cache", "encoder")):
        layers = getattr(getattr(cache, part, None), "layers", None)
        if not layers:
            raise TypeError(f"the model returns no {part.replace('_', ' ')}")
        tensors = (key_value(f"{i}.{side}", la.keys, la.values) for i, la in enumerate(layers))
        caches.append(tuple(chain.from_iterable(tensors)))
    return caches[0], caches[1]
