"""Encoder–decoder language models: two graphs that share weights.

The encoder's graph also computes the keys and values of cross-attention, which depend on nothing
else; so the decoder is one graph, with or without a past, that reads them as inputs and never
computes them again. What both graphs use, such as the table of token vectors, is one initializer of
one data file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgetie.bundle.names import DECODER, ENCODER, ENCODER_MASK
from edgetie.export.attention.broadcast import BroadcastAttention
from edgetie.export.attention.mask_branches import ResolveMaskBranches
from edgetie.export.attention.transformers_cache import build_cache
from edgetie.export.attention.window_padding import example_length, pad_to_window
from edgetie.export.tasks.base import (
    Graph,
    Task,
    key_value,
    logits_of,
    longest,
)
from edgetie.export.tasks.causal_model import cache_layers
from edgetie.export.tasks.comparison import (
    Agreement,
    Array,
    ReferenceRun,
    cpu_session,
    largest_error,
    largest_logit,
)
from edgetie.graph.tensors import CacheTensor
from edgetie.sources.cache_argument import cache_keyword

BATCH = 2
_SOURCE, _SEQUENCE, _PAST = 7, 3, 5  # example sizes; all of them are dynamic
_SOURCE_TOKENS, _SHORT = 12, 7  # compared with torch
_TOKENS, _PREFIX = 8, 4
_MASK = "attention_mask"


@dataclass(frozen=True)
class Reading:
    """What an encoder reads.

    Attributes:
        inputs: names of its inputs; ``attention_mask``, the last, is the decoder's too.
        examples: an example of each.
        shapes: their dynamic dimensions.
        length: of what the encoder makes of the examples.
        varies: whether other inputs make it longer or shorter.
    """

    inputs: tuple[str, ...]
    examples: tuple[torch.Tensor, ...]
    shapes: tuple[dict[int, Any], ...]
    length: int
    varies: bool

    @property
    def masks(self) -> tuple[torch.Tensor, ...]:
        """The example mask, if there is one."""
        return self.examples[-1:] if _MASK in self.inputs else ()


@dataclass(frozen=True)
class Seq2SeqTask(Task):
    """See :class:`edgetie.export.tasks.base.Task`; ``cache`` is the decoder's own.

    Attributes:
        cross: the cache of cross-attention.
        hidden_size: of the encoder's output.
        output: class of the encoder's output, where the model asks for more than a tuple.
        source_length: tokens of an example that the encoder is traced with.
    """

    name = "seq2seq-lm"

    cross: tuple[CacheTensor, ...]
    hidden_size: int
    output: type[Any] | None = field(default=None, kw_only=True)
    source_length: int = field(default=_SOURCE, kw_only=True)

    @property
    def replaces_attention(self) -> bool:
        return False

    def reading(self, dtype: torch.dtype) -> Reading:
        """What the encoder reads; ``dtype`` is that of the weights."""
        count = self.source_length
        ids, mask = (torch.ones(BATCH, count, dtype=torch.long) for _ in range(2))
        both = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
        return Reading(("input_ids", _MASK), (ids, mask), (both, both), count, True)

    def graphs(self, module: torch.nn.Module, *, fused: bool, last_only: bool) -> list[Graph]:
        dtype = next(module.parameters()).dtype
        dynamic = torch.export.Dim.DYNAMIC
        reading = self.reading(dtype)

        cross, own = (
            [torch.zeros(tensor.shape(BATCH, length), dtype=dtype) for tensor in cache]
            for cache, length in ((self.cross, reading.length), (self.cache, _PAST))
        )
        crossed, passed = ([t.past for t in tensors] for tensors in (self.cross, self.cache))
        both, grows = {0: dynamic, 1: dynamic}, {0: dynamic, 2: dynamic}
        masks = tuple(ENCODER_MASK for _ in reading.masks)
        encoder = Graph(
            file=ENCODER,
            module=_Encoder(module, reading.inputs, self.output),
            arguments=reading.examples,
            shapes=(reading.shapes,),
            inputs=list(reading.inputs),
            outputs=["last_hidden_state", *(tensor.present for tensor in self.cross)],
            dimensions=tuple(
                (reading.inputs[0], axis, "encoder_sequence_length" if axis else "batch_size")
                for axis in reading.shapes[0]
            ),
        )
        decoder = Graph(
            file=DECODER,
            module=_Decoder(
                module, len(masks), len(self.cross) // 2, self.hidden_size, self.output
            ),
            arguments=(
                torch.ones(BATCH, _SEQUENCE, dtype=torch.long), *reading.masks, *cross, *own,
            ),
            shapes=(
                both,
                (
                    *(both for _ in masks),
                    *(grows if reading.varies else {0: dynamic} for _ in cross),
                    *(grows for _ in own),
                ),
            ),
            inputs=["input_ids", *masks, *crossed, *passed],
            outputs=["logits", *(tensor.present for tensor in self.cache)],
            dimensions=(
                ("input_ids", 0, "batch_size"),
                ("input_ids", 1, "sequence_length"),
                *((name, 2, "encoder_sequence_length") for name in crossed),
                *((name, 2, "past_sequence_length") for name in passed),
            ),
        )  # fmt: skip
        return [encoder, decoder]

    def run_reference(self, module: torch.nn.Module) -> ReferenceRun:
        count = max(_SOURCE_TOKENS, self.source_length)
        random = np.random.default_rng(0)
        source = random.integers(0, self.vocab_size, (1, min(count, self.max_positions or count)))
        target = self.target(random)
        logits = [run(module, target, input_ids=ids) for ids in (source, source[:, :_SHORT])]
        inputs = {"input_ids": source, "decoder_input_ids": target}
        return ReferenceRun(inputs, np.concatenate(logits))

    def target(self, random: np.random.Generator) -> Array:
        """Random tokens of the decoder ``(1, count)``."""
        count = min(_TOKENS, self.max_positions or _TOKENS)
        return random.integers(0, self.vocab_size, (1, count))

    def readings(self, expected: ReferenceRun, dtype: type[Any]) -> tuple[dict[str, Array], ...]:
        """Inputs of the encoder: alone, and a batch of two that begins with the same."""
        source = expected.inputs["input_ids"]
        rows = np.repeat(source, 2, axis=0)
        mask = np.ones_like(rows)
        rows[1, _SHORT:], mask[1, _SHORT:] = 0, 0
        return (
            {"input_ids": source, _MASK: np.ones_like(source)},
            {"input_ids": rows, _MASK: mask},
        )

    def compare(self, directory: Path, expected: ReferenceRun, dtype: type[Any]) -> Agreement:
        target = expected.inputs["decoder_input_ids"]
        count = target.shape[1]
        whole, second = expected.logits[:count], expected.logits[count:]
        read = self.readings(expected, dtype)
        with cpu_session(directory / ENCODER) as encoder:
            encoded = [encoder.run(None, feeds)[1:] for feeds in read]
        masks = [[feeds[_MASK]] if _MASK in feeds else [] for feeds in read]
        alone, pair = ([*mask, *cross] for mask, cross in zip(masks, encoded, strict=True))
        prefill = cached = 0.0
        with cpu_session(directory / DECODER) as decoder:

            def run(ids: Array, given: list[Array], past: list[Array]) -> Any:
                past = past or [np.zeros(tensor.shape(len(ids)), dtype) for tensor in self.cache]
                names = [value.name for value in decoder.get_inputs()]
                logits, *present = decoder.run(
                    None, dict(zip(names, [ids, *given, *past], strict=True))
                )
                return logits, present

            logits, past = run(target[:, :_PREFIX], alone, [])
            prefill = largest_error(logits[0], whole[:_PREFIX])
            for position in range(_PREFIX, count):
                logits, past = run(target[:, position : position + 1], alone, past)
                cached = max(cached, largest_error(logits[0, 0], whole[position]))
            logits, past = run(np.repeat(target, 2, axis=0), pair, [])
            padded = max(largest_error(logits[0], whole), largest_error(logits[1], second))
        return Agreement(prefill, cached, padded, largest_logit(expected.logits))


class _Encoder(torch.nn.Module):
    """The encoder, and the keys and values that cross-attention makes of its output."""

    def __init__(
        self, model: torch.nn.Module, inputs: tuple[str, ...], output: type[Any] | None
    ) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.output = output
        self.cache = cache_keyword(model) or ""

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        model: Any = self.model
        given = dict(zip(self.inputs, inputs, strict=True))
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        with BroadcastAttention():
            hidden = self._encode(given)
            # all that does not become a key or value of cross-attention is dead code
            model(
                encoder_outputs=_encoded(hidden, self.output),
                decoder_input_ids=torch.zeros(hidden.shape[0], 1, dtype=torch.long),
                use_cache=True,
                **{name: given[name] for name in given if name == _MASK},
                **{self.cache: cache},
            )
        layers = cache.cross_attention_cache.layers
        return (hidden, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))

    def _encode(self, given: dict[str, torch.Tensor]) -> torch.Tensor:
        model: Any = self.model
        read = dict(given)
        length = pad_to_window(model, read)
        with ResolveMaskBranches(read.get(_MASK)):
            hidden: torch.Tensor = model.get_encoder()(**read)[0]
        return hidden if length is None else hidden[:, :length]


class _Decoder(torch.nn.Module):
    """The decoder, its cross-attention over keys and values that are given."""

    def __init__(
        self,
        model: torch.nn.Module,
        masks: int,
        cross: int,
        hidden_size: int,
        output: type[Any] | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.masks = masks
        self.cross = cross
        self.hidden_size = hidden_size
        self.output = output
        self.cache = cache_keyword(model) or ""

    def forward(self, input_ids: torch.Tensor, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        from transformers.cache_utils import EncoderDecoderCache

        mask, past = given[: self.masks], given[self.masks :]
        cross, own = (
            cache_layers(part) for part in (past[: 2 * self.cross], past[2 * self.cross :])
        )
        cache = EncoderDecoderCache(*(build_cache(dict(enumerate(part))) for part in (own, cross)))
        cache.is_updated = dict.fromkeys(range(self.cross), True)
        # only its shape is looked at: the keys and values made of it are in the cache
        shape = mask[0].shape if mask else (past[0].shape[0], past[0].shape[2])
        hidden = torch.zeros(*shape, self.hidden_size, dtype=past[0].dtype)
        with BroadcastAttention():
            output = self.model(
                encoder_outputs=_encoded(hidden, self.output),
                decoder_input_ids=input_ids,
                use_cache=True,
                **dict(zip((_MASK,), mask, strict=False)),
                **{self.cache: cache},
            )
        return (logits_of(output), *(tensor for layer in own for tensor in layer.result))


def _encoded(hidden: torch.Tensor, output: type[Any] | None) -> Any:
    """An encoder's output; of no class of its own, one with all that a decoder may copy."""
    from transformers.modeling_outputs import MoEModelOutput

    return (output or MoEModelOutput)(last_hidden_state=hidden)


def trial_run(module: torch.nn.Module, config: Any) -> Seq2SeqTask:
    """Run the model once on a few tokens.

    Raises:
        TypeError: if it keeps no keys and values of cross-attention.
    """
    ids = torch.ones(1, _SHORT, dtype=torch.long)
    model: Any = module
    with torch.no_grad():
        hidden = model.get_encoder()(input_ids=ids)[0]
        output = model(
            encoder_outputs=_encoded(hidden, None), decoder_input_ids=ids[:, :2], use_cache=True
        )
    own, cross = caches(module, output)
    return Seq2SeqTask(
        logits_of(output).shape[-1],
        longest(config, module),
        cross,
        hidden.shape[-1],
        cache=own,
        source_length=example_length(module, _SOURCE),
    )


def caches(
    module: torch.nn.Module, output: Any
) -> tuple[tuple[CacheTensor, ...], tuple[CacheTensor, ...]]:
    """The caches that a run left: the decoder's own, and that of cross-attention.

    Raises:
        TypeError: if one is not there.
    """
    cache = getattr(output, cache_keyword(module) or "", None)
    shapes: list[tuple[CacheTensor, ...]] = []
    for part, side in (("self_attention_cache", "decoder"), ("cross_attention_cache", "encoder")):
        layers = getattr(getattr(cache, part, None), "layers", None)
        if not layers:
            raise TypeError(f"the model returns no {part.replace('_', ' ')}")
        tensors = (key_value(f"{i}.{side}", la.keys, la.values) for i, la in enumerate(layers))
        shapes.append(tuple(chain.from_iterable(tensors)))
    return shapes[0], shapes[1]


def run(module: torch.nn.Module, target: Array, **source: Array) -> Array:
    """The logits ``(count, vocabulary)`` of the decoder's tokens, read with the encoder's input."""
    given = {name: torch.from_numpy(array) for name, array in source.items()}
    with torch.no_grad():
        output = module(decoder_input_ids=torch.from_numpy(target), **given)
    return np.asarray(logits_of(output)[0].float().numpy())
