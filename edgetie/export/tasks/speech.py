"""Export encoder-decoder models from audio to text, whose encoder reads features without a mask."""

import inspect
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn

from edgetie.export.comparison import Array, ReferenceRun
from edgetie.export.tasks.base import BATCH, GraphInput, logits_of, read_max_positions, torch_logits
from edgetie.export.tasks.seq2seq import ENCODED, Seq2SeqTask, describe_caches

logger = logging.getLogger(__name__)

_WIDTHS = (
    "num_mel_bins", "feature_projection_input_dim", "input_dim", "input_size",
    "hidden_size",  # of an encoder that reads embeddings
)  # fmt: skip
_INPUT_NAMES = ("input_features", "input_values", "inputs_embeds")
_SAMPLES, _FRAMES = 8000, (96, 200)  # of an example whose length is not fixed


@dataclass(frozen=True)
class SpeechTask(Seq2SeqTask):
    """See :class:`edgetie.export.tasks.seq2seq.Seq2SeqTask`.

    Attributes:
        input_name: of the encoder.
        shape: of the features of one example.
        time_axis: the dynamic axis of ``shape``; ``None`` if all audio must have this shape.
        encoded_length: length of the encoder's output for the example.
    """

    name = "speech-seq2seq"

    input_name: str
    shape: tuple[int, ...]
    time_axis: int | None
    encoded_length: int

    def encoder_inputs(self, dtype: torch.dtype) -> tuple[list[GraphInput], int]:
        axes = {0: "batch_size"}
        if self.time_axis is not None:
            axes[self.time_axis + 1] = ENCODED
        features = torch.zeros(BATCH, *self.shape, dtype=dtype)
        return [GraphInput(self.input_name, features, axes)], self.encoded_length

    def run_reference(self, module: nn.Module) -> ReferenceRun:
        random = np.random.default_rng(0)
        features = random.standard_normal((BATCH, *self.shape), np.float32)
        target = self.decoder_tokens(random)
        logits = [
            torch_logits(module, decoder_input_ids=target, **{self.input_name: item[None]})[0]
            for item in features
        ]
        inputs = {self.input_name: features, "decoder_input_ids": target}
        return ReferenceRun(inputs, np.concatenate(logits))

    def encoder_feeds(
        self, reference: ReferenceRun, dtype: type[Any]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        features = reference.inputs[self.input_name].astype(dtype)
        return {self.input_name: features[:1]}, {self.input_name: features}


def trial_run(module: nn.Module, config: Any) -> SpeechTask:
    """Run the model once on features of the first shape that its encoder accepts."""
    model: Any = module
    encoder = model.get_encoder()
    outer, inner = (inspect.signature(each.forward).parameters for each in (model, encoder))
    names = (name for name in _INPUT_NAMES if name in outer and name in inner)
    name = next(names, _INPUT_NAMES[0])

    def encode(shape: tuple[int, ...], time_axis: int) -> Any:
        with torch.no_grad():
            return encoder(**{name: torch.zeros(1, *shape)})

    shape, axis, output = find_input_shape(
        candidate_shapes(name, encoder.config, config), encode, name
    )
    length = output[0].shape[1]
    is_dynamic = changes_with_length(
        lambda: encode(lengthened(shape, axis, 1.5), axis)[0].shape[1], length
    )
    features, ids = torch.zeros(1, *shape), torch.ones(1, 2, dtype=torch.long)
    with torch.no_grad():
        decoded: Any = module(**{name: features}, decoder_input_ids=ids, use_cache=True)
    own, cross = describe_caches(module, decoded)
    return SpeechTask(
        logits_of(decoded).shape[-1],
        getattr(config, "max_target_positions", None) or read_max_positions(config, module),
        cross,
        output[0].shape[-1],
        name,
        shape,
        axis if is_dynamic else None,
        length,
        cache=own,
        output_class=type(output),
    )


def find_input_shape(
    candidates: Iterator[tuple[tuple[int, ...], int]],
    encode: Callable[[tuple[int, ...], int], Any],
    name: str,
) -> tuple[tuple[int, ...], int, Any]:
    """Find the first shape that can be encoded, its time axis, and what ``encode`` returned.

    Raises:
        TypeError: if none can.
    """
    last_error: Exception | None = None
    for shape, time_axis in candidates:
        try:
            return shape, time_axis, encode(shape, time_axis)
        except Exception as error:
            logger.debug("%s of shape %s cannot be encoded", name, shape, exc_info=True)
            last_error = error
    raise TypeError(f"no shape of {name} is known that it accepts") from last_error


def candidate_shapes(name: str, *configs: Any) -> Iterator[tuple[tuple[int, ...], int]]:
    """Shapes that features of one example may have, and their time axes."""
    if name == "input_values":
        yield (_SAMPLES,), 0

    def setting(key: str) -> int | None:
        values = (getattr(config, key, None) for config in configs)
        return next((value for value in values if isinstance(value, int)), None)

    bins, positions = setting("num_mel_bins"), setting("max_source_positions")
    if bins and positions:
        yield (bins, 2 * positions), 1
    channels = setting("input_feat_per_channel")
    widths = [
        channels and channels * (setting("input_channels") or 1),
        *(setting(key) for key in _WIDTHS),
    ]
    for width, frames in product(filter(None, widths), _FRAMES):
        yield (frames, width), 0
    for frames in _FRAMES:
        if bins:
            yield (bins, frames), 1


def lengthened(shape: tuple[int, ...], time_axis: int, factor: float) -> tuple[int, ...]:
    """A shape whose time axis is longer by a factor."""
    return tuple(int(n * factor) if axis == time_axis else n for axis, n in enumerate(shape))


def changes_with_length(measure_longer: Callable[[], int], size: int) -> bool:
    """Whether longer audio can be encoded, and to another size."""
    try:
        return measure_longer() != size
    except Exception:
        logger.debug("the encoder accepts audio of one length only", exc_info=True)
        return False
