"""Language models that hear: an encoder of sound beside a decoder of tokens.

The encoder makes rows as wide as the table of token vectors. In the decoder they take the places of
one token, in the order in which it occurs; a model without such a token adds one to each token.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from edgetie.bundle.names import AUDIO, AUDIO_LM, DECODER, ENCODER, FEATURES_MASK
from edgetie.export.attention.broadcast import BroadcastAttention
from edgetie.export.attention.windowed_encoder import attend_in_windows, find_window_length
from edgetie.export.tasks import causal
from edgetie.export.tasks.base import (
    FRAMES,
    Graph,
    logits_of,
)
from edgetie.export.tasks.causal import CausalTask
from edgetie.export.tasks.comparison import (
    Agreement,
    Array,
    ReferenceRun,
    cpu_session,
    largest_error,
    largest_logit,
)
from edgetie.export.tasks.speech import shapes, try_shapes
from edgetie.sources.cache_argument import cache_keyword

_SOURCE = "input_features"
_ROWS = 5  # of an example; any number, as many as the tokens whose places they take
_LONG = 24  # times an example's length: more than a window of attention
_BEFORE, _AFTER = 3, 6  # tokens around a sound, compared with torch
_STEPS = 3  # of those after it, one at a time


@dataclass(frozen=True)
class AudioTask(CausalTask):
    """See :class:`edgetie.export.tasks.causal.CausalTask`.

    Attributes:
        shape: of one clip's features, an example.
        axis: that of ``shape`` which is time.
        varies: whether clips may be longer or shorter.
        masked: whether the encoder is told which features are padding.
        hidden_size: of a row that it makes.
        window: rows of a clip that see each other, where not all do; clips are then read one by
            one.
    """

    name = AUDIO_LM

    shape: tuple[int, ...]
    axis: int
    varies: bool
    masked: bool
    hidden_size: int
    window: int | None

    def graphs(self, module: torch.nn.Module, *, fused: bool, last_only: bool) -> list[Graph]:
        return [self._encoder(module), self._decoder(module, fused, last_only)]

    def _encoder(self, module: torch.nn.Module) -> Graph:
        dtype = next(module.parameters()).dtype
        clips = 2 if self.window is None else 1
        features = torch.zeros(clips, *self.shape, dtype=dtype)
        dynamic = torch.export.Dim.DYNAMIC
        dimensions = {0: "batch_size"} if self.window is None else {}
        dimensions |= {self.axis + 1: FRAMES} if self.varies else {}
        mask = {(1 if axis else 0): dynamic for axis in dimensions}
        inputs = self._features(features)
        shapes = (dict.fromkeys(dimensions, dynamic), mask)
        return Graph(
            file=ENCODER,
            module=_Encoder(module, self.audio_token_id is not None, self.window),
            arguments=tuple(inputs.values()),
            shapes=shapes[: len(inputs)],
            inputs=list(inputs),
            outputs=[AUDIO],
            dimensions=(
                *((_SOURCE, axis, name) for axis, name in dimensions.items()),
                *((FEATURES_MASK, 1, FRAMES) for _ in range(self.masked and self.varies)),
            ),
        )

    def _decoder(self, module: torch.nn.Module, fused: bool, last_only: bool) -> Graph:
        embedded = Embedded(module, adds=self.audio_token_id is None)
        (decoder,) = super().graphs(embedded, fused=fused, last_only=last_only)
        ids, mask, *past = decoder.arguments
        dynamic = torch.export.Dim.DYNAMIC
        size: tuple[int, ...] = (_ROWS,)
        dimensions = [(AUDIO, 0, "rows")]
        if self.audio_token_id is None:
            size, dimensions = ids.shape, [(AUDIO, 0, "batch_size"), (AUDIO, 1, "sequence_length")]
        dtype = next(module.parameters()).dtype
        return replace(
            decoder,
            file=DECODER,
            module=_Decoder(decoder.module, embedded, self.audio_token_id),
            arguments=(ids, mask, torch.zeros(*size, self.hidden_size, dtype=dtype), *past),
            shapes=(
                *decoder.shapes[:2],
                dict.fromkeys(range(len(size)), dynamic),
                *decoder.shapes[2:],
            ),
            inputs=[*decoder.inputs[:2], AUDIO, *decoder.inputs[2:]],
            dimensions=(*decoder.dimensions, *dimensions),
        )

    def _features(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the encoder reads: features ``(clips, ...)`` of which none is padding."""
        given = {_SOURCE: features}
        if self.masked:
            given[FEATURES_MASK] = _ones(features, self.axis)
        return given

    def run_reference(self, module: torch.nn.Module) -> ReferenceRun:
        random = np.random.default_rng(0)
        token = self.audio_token_id
        inputs: dict[str, Array] = {}
        logits = []
        times = 1
        for index in range(2):
            shape = _longer(self.shape, self.axis, times if self.varies else 1)
            clip = random.standard_normal((1, *shape), np.float32)
            given = self._features(torch.from_numpy(clip))
            rows = _heard(module, given)
            times = 2 if self.window is None else 1 + self.window // rows.shape[-2]
            if token is None:
                ids = random.integers(0, self.vocab_size, (1, rows.shape[-2]))
            else:
                words = random.integers(0, self.vocab_size - 1, _BEFORE + _AFTER)
                words += words >= token
                audio_embeddings = [token] * rows.reshape(-1, self.hidden_size).shape[0]
                ids = np.array([[*words[:_BEFORE], *audio_embeddings, *words[_BEFORE:]]])
            with torch.no_grad():
                output = module(input_ids=torch.from_numpy(ids), **given)
            logits.append(logits_of(output)[0].float().numpy())
            inputs |= {f"clip.{index}": clip, f"ids.{index}": ids}
        return ReferenceRun(inputs, np.concatenate(logits))

    def compare(self, directory: Path, expected: ReferenceRun, dtype: type[Any]) -> Agreement:
        clips, ids = (
            [expected.inputs[f"{kind}.{i}"] for i in range(2)] for kind in ("clip", "ids")
        )
        count = ids[0].shape[1]
        wanted = expected.logits[:count], expected.logits[count:]
        with cpu_session(directory / ENCODER) as encoder:
            rows = []
            for clip in clips:
                given = self._features(torch.from_numpy(clip.astype(dtype)))
                rows += encoder.run(None, {name: value.numpy() for name, value in given.items()})
        with cpu_session(directory / DECODER) as decoder:
            return self._compare_clips(decoder, ids, rows, wanted, dtype)

    def _compare_clips(
        self, decoder: Any, ids: list[Array], rows: list[Array], wanted: Any, dtype: type[Any]
    ) -> Agreement:
        names = [value.name for value in decoder.get_inputs()]

        def run(tokens: Array, mask: Array, audio_embeddings: Array, past: list[Array]) -> Any:
            past = past or [np.zeros(tensor.shape(len(tokens)), dtype) for tensor in self.cache]
            feeds = dict(zip(names, [tokens, mask, audio_embeddings, *past], strict=True))
            logits, *present = decoder.run(None, feeds)
            return logits[:, -1], present

        def audio_embeddings(row: Array, start: int, end: int) -> Array:
            """What is heard at tokens ``start`` to ``end``."""
            if self.audio_token_id is None:
                return row[:, start:end]
            return row if start == 0 else row[:0]

        prefill = cached = padded = 0.0
        for tokens, row, logits in zip(ids, rows, wanted, strict=True):
            count = tokens.shape[1]
            prefix = count - _STEPS
            got, past = run(
                tokens[:, :prefix],
                np.ones((1, prefix), np.int64),
                audio_embeddings(row, 0, prefix),
                [],
            )
            prefill = max(prefill, largest_error(got[0], logits[prefix - 1]))
            for end in range(prefix + 1, count + 1) if self.cache else ():
                step = tokens[:, end - 1 : end]
                got, past = run(
                    step, np.ones((1, end), np.int64), audio_embeddings(row, end - 1, end), past
                )
                cached = max(cached, largest_error(got[0], logits[end - 1]))
        short, long = (tokens.shape[1] for tokens in ids)
        both = np.zeros((2, long), np.int64)
        mask = np.zeros((2, long), np.int64)
        both[0, long - short :], mask[0, long - short :], both[1], mask[1] = ids[0], 1, ids[1], 1
        if self.audio_token_id is None:
            empty = np.zeros((1, long - short, self.hidden_size), dtype)
            pair = np.concatenate([np.concatenate([empty, rows[0]], axis=1), rows[1]])
        else:
            pair = np.concatenate(rows)
        got, _ = run(both, mask, pair, [])
        padded = max(largest_error(got[i], wanted[i][-1]) for i in range(2))
        largest = max(largest_logit(logits) for logits in wanted)
        return Agreement(prefill, cached, padded, largest)


class _Encoder(torch.nn.Module):
    """Features of sounds to rows ``(rows, hidden_size)``, or ``(batch, rows, hidden_size)``."""

    def __init__(self, model: torch.nn.Module, flat: bool, window: int | None) -> None:
        super().__init__()
        self.model = model
        self.flat = flat
        self.window = window

    def forward(self, features: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        given = {_SOURCE: features} | ({} if mask is None else {FEATURES_MASK: mask})
        with BroadcastAttention(), attend_in_windows(self.model, self.window) as windows:
            rows = _heard(self.model, given | windows)
        return rows.flatten(0, -2) if self.flat else rows


class Embedded(torch.nn.Module):
    """A language model that is told vectors in the place of tokens.

    Args:
        model: the language model.
        adds: whether it adds what it hears to each token, and must hear something.

    Attributes:
        vectors: ``(count, hidden_size)``; ``input_ids`` are rows of it. Without, they are tokens.
    """

    def __init__(self, model: torch.nn.Module, *, adds: bool) -> None:
        super().__init__()
        self.model = model
        self.adds = adds
        self.vectors: torch.Tensor | None = None

    def forward(self, input_ids: torch.Tensor, cache: Any = None, **given: Any) -> Any:
        model: Any = self.model
        if self.vectors is None:
            vectors = model.get_input_embeddings()(input_ids)
        else:
            vectors = self.vectors[input_ids]
        keyword = cache_keyword(self.model)
        given |= {keyword: cache} if keyword else {}
        if not self.adds:
            return model(inputs_embeds=vectors, **given)
        with _silence(model, vectors.new_zeros(1)):
            return model(inputs_embeds=vectors, input_features=vectors, **given)


@contextlib.contextmanager
def _silence(model: torch.nn.Module, rows: torch.Tensor) -> Iterator[None]:
    """Let a model hear nothing, whatever features it is given."""
    listener = _listener(model)
    audio_embeddings = SimpleNamespace(pooler_output=rows, cache=None, padding_cache=None)
    listener.get_audio_features = lambda *_, **__: audio_embeddings
    try:
        yield
    finally:
        del listener.get_audio_features


class _Decoder(torch.nn.Module):
    """Tokens and rows of sounds to logits.

    Args:
        decoder: reads rows of ``embedded.vectors``.
        embedded: inside of it.
        token: the token whose places rows take; ``None`` to add one to each token.
    """

    def __init__(self, decoder: torch.nn.Module, embedded: Embedded, token: int | None) -> None:
        super().__init__()
        self.decoder = decoder
        self.embedded = embedded
        self.token = token

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        rows: torch.Tensor,
        *past: torch.Tensor,
    ) -> Any:
        model: Any = self.embedded.model
        table = model.get_input_embeddings()
        if self.token is None:
            vectors = table(input_ids) + rows
        else:
            here = input_ids == self.token
            order = (here.flatten().cumsum(0) * here.flatten()).view(input_ids.shape)
            rows = torch.cat([rows.new_zeros(1, rows.shape[-1]), rows])  # a step hears none
            tokens = table(torch.where(here, 0, input_ids))
            vectors = torch.where(here[..., None], rows[order], tokens)
        self.embedded.vectors = vectors.flatten(0, 1)
        places = torch.arange(input_ids.shape[0] * input_ids.shape[1]).view(input_ids.shape)
        try:
            return self.decoder(places, attention_mask, *past)
        finally:
            self.embedded.vectors = None


def is_audio_model(module: torch.nn.Module) -> bool:
    """Whether a model is a decoder of tokens with an encoder of sound beside it."""
    config = getattr(module, "config", None)
    return hasattr(module, "get_audio_features") and not getattr(
        config, "is_encoder_decoder", False
    )


def trial_run(module: torch.nn.Module, config: Any) -> AudioTask:
    """Run encoder and decoder once.

    Raises:
        TypeError: if no shape of a clip fits.
    """
    configs = [part.config for part in module.modules() if hasattr(part, "config")]
    parameters = inspect.signature(_listener(module).get_audio_features).parameters
    masked = FEATURES_MASK in parameters

    def encode(shape: tuple[int, ...], axis: int) -> torch.Tensor:
        features = torch.zeros(1, *shape)
        mask = {FEATURES_MASK: _ones(features, axis)} if masked else {}
        return _heard(module, {_SOURCE: features, **mask})

    shape, axis, rows = try_shapes(shapes(_SOURCE, *configs), encode, _SOURCE)
    token = getattr(config, "audio_token_id", None)
    base = causal.trial_run(Embedded(module, adds=token is None), config)
    window = None
    try:
        varies = encode(_longer(shape, axis, 2), axis).numel() != rows.numel()
    except Exception:
        varies = False
    if varies:
        listener, long = _listener(module), _longer(shape, axis, _LONG)
        window = find_window_length(listener, lambda: encode(shape, axis))
        window = window and find_window_length(listener, lambda: encode(long, axis))
    return AudioTask(
        **{each.name: getattr(base, each.name) for each in fields(base)}
        | {"audio_token_id": token},
        shape=shape,
        axis=axis,
        varies=varies,
        masked=masked,
        hidden_size=rows.shape[-1],
        window=window,
    )


def _longer(shape: tuple[int, ...], axis: int, times: int) -> tuple[int, ...]:
    return tuple(size * times if i == axis else size for i, size in enumerate(shape))


def _ones(features: torch.Tensor, axis: int) -> torch.Tensor:
    """A mask of features ``(clips, ...)``, time behind their ``axis``: none is padding."""
    return torch.ones(features.shape[0], features.shape[axis + 1], dtype=torch.long)


def _listener(module: Any) -> Any:
    """The part whose ``get_audio_features`` says what it takes."""
    inner = getattr(module, "base_model", module)
    return inner if hasattr(inner, "get_audio_features") else module


def _heard(module: torch.nn.Module, given: dict[str, Any]) -> torch.Tensor:
    """The rows that a model makes of features, as wide as a token's vector."""
    listener = _listener(module)
    names = inspect.signature(listener.get_audio_features).parameters
    others: dict[str, Any] = {
        each.name: None
        for each in names.values()
        if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
    }
    others |= {"use_cache": False} if "use_cache" in names else {}
    output = listener.get_audio_features(**{**others, **given}, return_dict=True)
    rows: torch.Tensor = output.pooler_output
    return rows
