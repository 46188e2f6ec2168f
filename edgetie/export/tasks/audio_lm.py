"""Export audio language models: an audio encoder, and a decoder of tokens that reads its output.

The audio embeddings replace the embeddings of one token, in the order in which it occurs. In a
model without such a token, one is added to the embedding of each token.
"""

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgetie.bundle.names import AUDIO, AUDIO_LM, DECODER, ENCODER, FEATURES_MASK
from edgetie.export.attention.broadcast import BroadcastAttention
from edgetie.export.attention.windowed_encoder import attend_in_windows, find_window_length
from edgetie.export.comparison import (
    Agreement,
    Array,
    DecoderRunner,
    ReferenceRun,
    cpu_session,
    largest_error,
    left_pad,
)
from edgetie.export.tasks import causal
from edgetie.export.tasks.base import FRAMES, Graph, GraphInput, torch_logits
from edgetie.export.tasks.causal import CausalTask
from edgetie.export.tasks.speech import (
    candidate_shapes,
    changes_with_length,
    find_input_shape,
    lengthened,
)
from edgetie.sources.source import cache_keyword

_FEATURES = "input_features"
_EMBEDDINGS = 5  # of an example; as many as there are audio tokens
_LONG = 24  # times an example's length: more than a window of attention
_BEFORE, _AFTER = 3, 6  # tokens around the audio, compared with torch
_STEPS = 3  # of those after it, one at a time


@dataclass(frozen=True)
class AudioTask(CausalTask):
    """See :class:`edgetie.export.tasks.causal.CausalTask`.

    Attributes:
        shape: of the features of one example.
        time_axis: that of ``shape``.
        is_dynamic: whether audio may be longer or shorter.
        has_mask: whether the encoder reads a mask of its features.
        hidden_size: of an audio embedding.
        attention_window: if the encoder attends in windows, of one example at a time, their length.
    """

    name = AUDIO_LM

    shape: tuple[int, ...]
    time_axis: int
    is_dynamic: bool
    has_mask: bool
    hidden_size: int
    attention_window: int | None

    def graphs(self, module: nn.Module, *, fused: bool, last_only: bool) -> list[Graph]:
        return [self._encoder_graph(module), self._decoder_graph(module, fused, last_only)]

    def _encoder_graph(self, module: nn.Module) -> Graph:
        batch, axes = (2, {0: "batch_size"}) if self.attention_window is None else (1, {})
        features = torch.zeros(batch, *self.shape, dtype=next(module.parameters()).dtype)
        time_axes = {_FEATURES: self.time_axis + 1, FEATURES_MASK: 1}
        tensors = (
            GraphInput(name, value, axes | ({time_axes[name]: FRAMES} if self.is_dynamic else {}))
            for name, value in self._encoder_feeds(features).items()
        )
        encoder = _Encoder(module, self.audio_token_id is not None, self.attention_window)
        return Graph(ENCODER, encoder, tuple(tensors), outputs=[AUDIO], parameters=2)

    def _decoder_graph(self, module: nn.Module, fused: bool, last_only: bool) -> Graph:
        embedded = EmbeddingLM(module, adds_audio=self.audio_token_id is None)
        (decoder,) = super().graphs(embedded, fused=fused, last_only=last_only)
        ids, mask, *past = decoder.tensors
        shape, axes = (tuple(ids.example.shape), ids.axes)
        if self.audio_token_id is not None:
            shape, axes = (_EMBEDDINGS,), {0: "rows"}
        dtype = next(module.parameters()).dtype
        audio = GraphInput(AUDIO, torch.zeros(*shape, self.hidden_size, dtype=dtype), axes)
        wrapper = _Decoder(decoder.module, embedded, self.audio_token_id)
        tensors = (ids, mask, audio, *past)
        return Graph(DECODER, wrapper, tensors, decoder.outputs, parameters=3)

    def _encoder_feeds(self, features: Tensor) -> dict[str, Tensor]:
        return _feeds(features, self.time_axis, self.has_mask)

    def run_reference(self, module: nn.Module) -> ReferenceRun:
        random = np.random.default_rng(0)
        token = self.audio_token_id
        inputs: dict[str, Array] = {}
        logits = []
        factor = 1
        for index in range(2):
            shape = lengthened(self.shape, self.time_axis, factor if self.is_dynamic else 1)
            features = random.standard_normal((1, *shape), np.float32)
            feeds = self._encoder_feeds(torch.from_numpy(features))
            embeddings = _embed_audio(module, feeds)
            count = embeddings.shape[-2]
            factor = 2 if self.attention_window is None else 1 + self.attention_window // count
            if token is None:
                ids = random.integers(0, self.vocab_size, (1, count))
            else:
                text = random.integers(0, self.vocab_size - 1, _BEFORE + _AFTER)
                text += text >= token
                audio = [token] * embeddings.reshape(-1, self.hidden_size).shape[0]
                ids = np.array([[*text[:_BEFORE], *audio, *text[_BEFORE:]]])
            logits.append(torch_logits(module, input_ids=ids, **feeds)[0])
            inputs |= {f"features.{index}": features, f"ids.{index}": ids}
        return ReferenceRun(inputs, np.concatenate(logits))

    def compare(self, directory: Path, reference: ReferenceRun, dtype: type[Any]) -> Agreement:
        features, ids = (
            [reference.inputs[f"{kind}.{i}"] for i in range(2)] for kind in ("features", "ids")
        )
        audio: list[Array] = []
        with cpu_session(directory / ENCODER) as encoder:
            for example in features:
                feeds = self._encoder_feeds(torch.from_numpy(example.astype(dtype)))
                audio += encoder.run(None, {name: value.numpy() for name, value in feeds.items()})
        expected = np.split(reference.logits, [ids[0].shape[1]])
        with cpu_session(directory / DECODER) as session:
            run = DecoderRunner(session, self.cache, dtype)
            errors = [
                run.errors(partial(self._decoder_feeds, *feeds), logits, len(logits) - _STEPS)
                for feeds, logits in zip(zip(ids, audio, strict=True), expected, strict=True)
            ]
            tokens, mask = left_pad([ids[0][0], ids[1][0]])
            if self.audio_token_id is None:
                length = tokens.shape[1]
                audio = [np.pad(a, ((0, 0), (length - a.shape[1], 0), (0, 0))) for a in audio]
            logits, _ = run([tokens, mask, np.concatenate(audio)])
        padded = max(largest_error(logits[i, -1], expected[i][-1]) for i in range(2))
        prefill, cached = map(max, zip(*errors, strict=True))
        return reference.agreement(prefill, cached, padded)

    def _decoder_feeds(self, ids: Array, audio: Array, start: int, end: int) -> list[Array]:
        if self.audio_token_id is None:
            audio = audio[:, start:end]
        elif start:
            audio = audio[:0]
        return [ids[:, start:end], np.ones((1, end), np.int64), audio]


class _Encoder(nn.Module):
    """Features to audio embeddings ``(count, hidden_size)``, or ``(batch, count, hidden_size)``."""

    def __init__(self, model: nn.Module, flat: bool, attention_window: int | None) -> None:
        super().__init__()
        self.model, self.flat, self.attention_window = model, flat, attention_window

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        feeds = {_FEATURES: features} | ({} if mask is None else {FEATURES_MASK: mask})
        windows = attend_in_windows(self.model, self.attention_window)
        with BroadcastAttention(), windows as arguments:
            embeddings = _embed_audio(self.model, feeds | arguments)
        return embeddings.flatten(0, -2) if self.flat else embeddings


class EmbeddingLM(nn.Module):
    """A language model that reads embeddings in place of tokens.

    Attributes:
        adds_audio: whether it adds an audio embedding to each token, and always computes them.
        embeddings: ``(count, hidden_size)``, which ``input_ids`` index; by default the tokens'.
    """

    def __init__(self, model: nn.Module, *, adds_audio: bool) -> None:
        super().__init__()
        self.model = model
        self.adds_audio = adds_audio
        self.embeddings: Tensor | None = None

    def forward(self, input_ids: Tensor, cache: Any = None, **kwargs: Any) -> Any:
        model: Any = self.model
        if self.embeddings is None:
            embeddings = model.get_input_embeddings()(input_ids)
        else:
            embeddings = self.embeddings[input_ids]
        keyword = cache_keyword(self.model)
        kwargs |= {keyword: cache} if keyword else {}
        if not self.adds_audio:
            return model(inputs_embeds=embeddings, **kwargs)
        with _fixed_audio(model, embeddings.new_zeros(1)):
            return model(inputs_embeds=embeddings, input_features=embeddings, **kwargs)


@contextlib.contextmanager
def _fixed_audio(model: nn.Module, embeddings: Tensor) -> Iterator[None]:
    """Replace the audio embeddings that a model computes, whatever features it reads."""
    encoder = _audio_encoder(model)
    output = SimpleNamespace(pooler_output=embeddings, cache=None, padding_cache=None)
    encoder.get_audio_features = lambda *_, **__: output
    try:
        yield
    finally:
        del encoder.get_audio_features


class _Decoder(nn.Module):
    """Tokens and audio embeddings to logits.

    Args:
        decoder: the wrapper around ``embedded`` that reads its embeddings by number.
        embedded: the language model.
        token: the token whose embeddings are replaced; ``None`` to add one to each token.
    """

    def __init__(self, decoder: nn.Module, embedded: EmbeddingLM, token: int | None) -> None:
        super().__init__()
        self.decoder, self.embedded, self.token = decoder, embedded, token

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, audio: Tensor, *past: Tensor
    ) -> Any:
        model: Any = self.embedded.model
        embed_tokens = model.get_input_embeddings()
        if self.token is None:
            embeddings = embed_tokens(input_ids) + audio
        else:
            is_audio = input_ids == self.token
            order = (is_audio.flatten().cumsum(0) * is_audio.flatten()).view(input_ids.shape)
            audio = torch.cat([audio.new_zeros(1, audio.shape[-1]), audio])  # a step has none
            tokens = embed_tokens(torch.where(is_audio, 0, input_ids))
            embeddings = torch.where(is_audio[..., None], audio[order], tokens)
        self.embedded.embeddings = embeddings.flatten(0, 1)
        indices = torch.arange(input_ids.shape[0] * input_ids.shape[1]).view(input_ids.shape)
        try:
            return self.decoder(indices, attention_mask, *past)
        finally:
            self.embedded.embeddings = None


def is_audio_model(module: nn.Module) -> bool:
    """Whether a model is a decoder of tokens with an audio encoder."""
    is_pair = getattr(getattr(module, "config", None), "is_encoder_decoder", False)
    return hasattr(module, "get_audio_features") and not is_pair


def trial_run(module: nn.Module, config: Any) -> AudioTask:
    """Run encoder and decoder once.

    Raises:
        TypeError: if the encoder accepts no shape of features.
    """
    configs = [part.config for part in module.modules() if hasattr(part, "config")]
    encoder = _audio_encoder(module)
    has_mask = FEATURES_MASK in inspect.signature(encoder.get_audio_features).parameters

    def encode(shape: tuple[int, ...], time_axis: int) -> Tensor:
        return _embed_audio(module, _feeds(torch.zeros(1, *shape), time_axis, has_mask))

    shape, axis, embeddings = find_input_shape(
        candidate_shapes(_FEATURES, *configs), encode, _FEATURES
    )
    token = getattr(config, "audio_token_id", None)
    base = causal.trial_run(EmbeddingLM(module, adds_audio=token is None), config)
    is_dynamic = changes_with_length(
        lambda: encode(lengthened(shape, axis, 2), axis).numel(), embeddings.numel()
    )
    window = None
    if is_dynamic:
        window = find_window_length(encoder, lambda: encode(shape, axis))
        long = lengthened(shape, axis, _LONG)
        window = window and find_window_length(encoder, lambda: encode(long, axis))
    return AudioTask(
        **vars(replace(base, audio_token_id=token)),
        shape=shape,
        time_axis=axis,
        is_dynamic=is_dynamic,
        has_mask=has_mask,
        hidden_size=embeddings.shape[-1],
        attention_window=window,
    )


def _feeds(features: Tensor, time_axis: int, has_mask: bool) -> dict[str, Tensor]:
    """The encoder's inputs without padding; ``time_axis`` is that of one example."""
    shape = features.shape[0], features.shape[time_axis + 1]
    mask = {FEATURES_MASK: torch.ones(shape, dtype=torch.long)} if has_mask else {}
    return {_FEATURES: features, **mask}


def _audio_encoder(module: Any) -> Any:
    """The part whose ``get_audio_features`` has the encoder's parameters."""
    inner = getattr(module, "base_model", module)
    return inner if hasattr(inner, "get_audio_features") else module


def _embed_audio(module: nn.Module, feeds: dict[str, Any]) -> Tensor:
    """The audio embeddings that a model computes from features."""
    encode = _audio_encoder(module).get_audio_features
    parameters = inspect.signature(encode).parameters
    kwargs: dict[str, Any] = {
        parameter.name: None
        for parameter in parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    }
    kwargs |= {"use_cache": False} if "use_cache" in parameters else {}
    embeddings: Tensor = encode(**{**kwargs, **feeds}, return_dict=True).pooler_output
    return embeddings
