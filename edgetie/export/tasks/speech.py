"""Encoder–decoder models that hear: features of speech in, tokens out.

The encoder reads features (a spectrogram, or the waveform itself) without a mask; the decoder is
that of :mod:`edgetie.export.tasks.seq2seq`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch

from edgetie.export.tasks.base import (
    logits_of,
    longest,
)
from edgetie.export.tasks.comparison import (
    Array,
    ReferenceRun,
)
from edgetie.export.tasks.seq2seq import BATCH, Reading, Seq2SeqTask, caches, run

_WIDTHS = (
    "num_mel_bins",
    "feature_projection_input_dim",
    "input_dim",
    "input_size",
    "hidden_size",  # of an encoder that reads embeddings
)
_SOURCES = ("input_features", "input_values", "inputs_embeds")
_SAMPLES, _FRAMES = 8000, (96, 200)  # of one example, where its length is free


@dataclass(frozen=True)
class SpeechTask(Seq2SeqTask):
    """See :class:`edgetie.export.tasks.seq2seq.Seq2SeqTask`.

    Attributes:
        source: name of the encoder's input.
        shape: of one clip's features, an example.
        axis: that of ``shape`` along which clips may be longer or shorter; ``None`` if all must
            have this shape.
        length: of what the encoder makes of it.
    """

    name = "speech-seq2seq"

    source: str
    shape: tuple[int, ...]
    axis: int | None
    length: int

    def reading(self, dtype: torch.dtype) -> Reading:
        shape = {0: torch.export.Dim.DYNAMIC}
        if self.axis is not None:
            shape[self.axis + 1] = torch.export.Dim.DYNAMIC
        features = torch.zeros(BATCH, *self.shape, dtype=dtype)
        return Reading((self.source,), (features,), (shape,), self.length, self.axis is not None)

    def run_reference(self, module: torch.nn.Module) -> ReferenceRun:
        random = np.random.default_rng(0)
        clips = random.standard_normal((BATCH, *self.shape), np.float32)
        target = self.target(random)
        logits = [run(module, target, **{self.source: clips[i : i + 1]}) for i in range(BATCH)]
        inputs = {self.source: clips, "decoder_input_ids": target}
        return ReferenceRun(inputs, np.concatenate(logits))

    def readings(self, expected: ReferenceRun, dtype: type[Any]) -> tuple[dict[str, Array], ...]:
        clips = expected.inputs[self.source].astype(dtype)
        return {self.source: clips[:1]}, {self.source: clips}


def trial_run(module: torch.nn.Module, config: Any) -> SpeechTask:
    """Run the model once on noise, its shape found by trying what the configuration suggests.

    Raises:
        TypeError: if no shape fits, or the model keeps no keys and values of cross-attention.
    """
    model: Any = module
    encoder = model.get_encoder()
    source = _source(module, encoder)
    shape, axis, encoded = try_shapes(
        shapes(source, encoder.config, config),
        lambda shape, _: _encode(encoder, source, shape),
        source,
    )
    longer = tuple(size + size // 2 * (i == axis) for i, size in enumerate(shape))
    try:
        varies = _encode(encoder, source, longer)[0].shape[1] != encoded[0].shape[1]
    except Exception:
        varies = False
    with torch.no_grad():
        output: Any = module(
            **{source: torch.zeros(1, *shape)},
            decoder_input_ids=torch.ones(1, 2, dtype=torch.long),
            use_cache=True,
        )
    own, cross = caches(module, output)
    return SpeechTask(
        logits_of(output).shape[-1],
        getattr(config, "max_target_positions", None) or longest(config, module),
        cross,
        encoded[0].shape[-1],
        source,
        shape,
        axis if varies else None,
        encoded[0].shape[1],
        cache=own,
        output=type(encoded),
    )


def _source(module: torch.nn.Module, encoder: torch.nn.Module) -> str:
    """What the encoder calls the features that it reads."""
    whole, part = (inspect.signature(each.forward).parameters for each in (module, encoder))
    return next((name for name in _SOURCES if name in whole and name in part), _SOURCES[0])


def try_shapes(
    candidates: Iterator[tuple[tuple[int, ...], int]],
    encode: Callable[[tuple[int, ...], int], Any],
    source: str,
) -> tuple[tuple[int, ...], int, Any]:
    """The first shape that can be encoded, which of its axes is time, and what came out.

    Raises:
        TypeError: if none can.
    """
    why: Exception | None = None
    for shape, axis in candidates:
        try:
            return shape, axis, encode(shape, axis)
        except Exception as error:
            why = error
    raise TypeError(f"no shape of {source} is known that it takes") from why


def shapes(source: str, *configs: Any) -> Iterator[tuple[tuple[int, ...], int]]:
    """Shapes that a clip may have, and which of their axes is time."""
    if source == "input_values":
        yield (_SAMPLES,), 0

    def setting(name: str) -> int | None:
        found = (getattr(config, name, None) for config in configs)
        return next((size for size in found if isinstance(size, int)), None)

    bins, positions = setting("num_mel_bins"), setting("max_source_positions")
    if bins and positions:
        yield (bins, 2 * positions), 1
    channels = setting("input_feat_per_channel")
    widths = [
        channels and channels * (setting("input_channels") or 1),
        *(setting(name) for name in _WIDTHS),
    ]
    for width, frames in product(filter(None, widths), _FRAMES):
        yield (frames, width), 0
    for frames in _FRAMES:
        if bins:
            yield (bins, frames), 1


def _encode(encoder: torch.nn.Module, source: str, shape: tuple[int, ...]) -> Any:
    with torch.no_grad():
        return encoder(**{source: torch.zeros(1, *shape)})
