"""Export encoder-decoder models from images to text, whose encoder may read a prompt as well."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgetie.bundle.names import IMAGE_TO_TEXT, PATCHES, PIXELS
from edgetie.export.comparison import Array, ReferenceRun
from edgetie.export.images.place_rows import PlaceRows
from edgetie.export.tasks.base import (
    BATCH,
    Graph,
    GraphInput,
    logits_of,
    read_max_positions,
    token_input,
    torch_logits,
)
from edgetie.export.tasks.image_lm import image_token
from edgetie.export.tasks.seq2seq import ENCODED, Seq2SeqTask, describe_caches, empty_cache
from edgetie.export.tasks.speech import find_input_shape
from edgetie.sources.source import cache_keyword

_COLUMNS, _ROWS = 6, (4, 3)  # of patches, in two examples
_TEXT = (6, 4)  # tokens after the image in two examples of a prompt
_SIZES = (224, 384)  # to try if the configuration has no size
_IDS, _MASK = "input_ids", "attention_mask"


@dataclass(frozen=True)
class ImageToTextTask(Seq2SeqTask):
    """See :class:`edgetie.export.tasks.seq2seq.Seq2SeqTask`.

    The encoder reads pixels, or flattened patches and a mask that tells which are padding. If there
    is an image token, it reads pixels and a prompt.

    Attributes:
        shape: of the pixel values of an image, or of the flattened patches of one.
        encoded_length: length of the encoder's output for the example.
    """

    name = IMAGE_TO_TEXT

    shape: tuple[int, ...]
    encoded_length: int

    @property
    def _has_patches(self) -> bool:
        return len(self.shape) == 2

    def encoder_inputs(self, dtype: torch.dtype) -> tuple[list[GraphInput], int]:
        images = torch.zeros(BATCH, *self.shape, dtype=dtype)
        mask = token_input(_MASK, self.encoded_length, ENCODED)
        if self._has_patches:
            return [GraphInput(PATCHES, images, mask.axes), mask], self.encoded_length
        pixels = GraphInput(PIXELS, images, {0: "batch_size"})
        if self.image_token_id is None:
            return [pixels], self.encoded_length
        return [pixels, token_input(_IDS, self.encoded_length, ENCODED), mask], self.encoded_length

    def encode(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        if self.image_token_id is None:
            return super().encode(model, inputs)
        with PlaceRows(inputs[_IDS] == self.image_token_id):
            if PIXELS in inspect.signature(model.get_encoder().forward).parameters:
                return super().encode(model, inputs)
            tokens = torch.zeros(inputs[_IDS].shape[0], 1, dtype=torch.long)
            output = model(**inputs, decoder_input_ids=tokens)
        hidden: Tensor = output.encoder_last_hidden_state
        return hidden

    def graphs(self, module: nn.Module, *, fused: bool, last_only: bool) -> list[Graph]:
        return super().graphs(as_encoder_decoder(module), fused=fused, last_only=last_only)

    def run_reference(self, module: nn.Module) -> ReferenceRun:
        random = np.random.default_rng(0)
        target = self.decoder_tokens(random)
        inputs, logits = {"decoder_input_ids": target}, []
        for index in range(2):
            feeds = self._example(random, index)
            logits.append(torch_logits(module, **feeds, **{_decoder_keyword(module): target})[0])
            inputs |= {f"{name}.{index}": value for name, value in feeds.items()}
        return ReferenceRun(inputs, np.concatenate(logits))

    def _example(self, random: np.random.Generator, index: int) -> dict[str, Array]:
        """Draw the encoder's inputs for one of two images, without padding."""
        if self._has_patches:
            patches = random.standard_normal((1, _ROWS[index] * _COLUMNS, self.shape[1]))
            patches[..., :2] = np.indices((_ROWS[index], _COLUMNS)).reshape(2, -1).T + 1
            return {
                PATCHES: patches.astype(np.float32),
                _MASK: np.ones(patches.shape[:2], np.int64),
            }
        feeds: dict[str, Array] = {PIXELS: random.standard_normal((1, *self.shape), np.float32)}
        if self.image_token_id is None:
            return feeds
        text = random.integers(0, self.vocab_size - 1, _TEXT[index])
        text += text >= self.image_token_id
        ids = np.array([[*[self.image_token_id] * (self.image_tokens or 0), *text]])
        return {**feeds, _IDS: ids, _MASK: np.ones_like(ids)}

    def encoder_feeds(
        self, reference: ReferenceRun, dtype: type[Any]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        names = [value.name for value in self.encoder_inputs(torch.float32)[0]]
        pair = {name: _join([reference.inputs[f"{name}.{i}"] for i in range(2)]) for name in names}
        single = {name: reference.inputs[f"{name}.0"] for name in names}
        return _in_dtype(single, dtype), _in_dtype(pair, dtype)


def _join(arrays: Sequence[Array]) -> Array:
    """Join batches, padded on the right to one length."""
    longest = max(each.shape[1] for each in arrays)
    return np.concatenate(
        [
            np.pad(each, ((0, 0), (0, longest - each.shape[1]), *[(0, 0)] * (each.ndim - 2)))
            for each in arrays
        ]
    )


def _in_dtype(feeds: Mapping[str, Array], dtype: type[Any]) -> dict[str, Array]:
    return {n: each.astype(dtype) if each.dtype.kind == "f" else each for n, each in feeds.items()}


class _EncoderDecoder(nn.Module):
    """An image encoder and a decoder with cross-attention, called like other pairs of them."""

    def __init__(self, model: nn.Module, encoder: str, decoder: str) -> None:
        super().__init__()
        self.model, self.encoder, self.decoder = model, encoder, decoder
        self.config: Any = model.config

    def get_encoder(self) -> Any:
        return getattr(self.model, self.encoder)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: Any = None,
        cache: Any = None,
        use_cache: bool | None = None,
    ) -> Any:
        if encoder_outputs is None:
            encoder_outputs = self.get_encoder()(pixel_values=pixel_values)
        decoder = getattr(self.model, self.decoder)
        return decoder(
            input_ids=decoder_input_ids,
            encoder_hidden_states=encoder_outputs[0],
            use_cache=use_cache,
            **{cache_keyword(decoder) or "": cache},
        )


def as_encoder_decoder(module: nn.Module) -> nn.Module:
    """Return a model that is called like an encoder-decoder model, by default the module itself.

    Raises:
        TypeError: if it has no decoder that reads the output of an image encoder.
    """
    if _decoder_keyword(module) == "decoder_input_ids":
        return module
    parts = {
        name: inspect.signature(part.forward).parameters for name, part in module.named_children()
    }
    encoder = next((name for name in parts if PIXELS in parts[name]), None)
    decoder = next((name for name in parts if "encoder_hidden_states" in parts[name]), None)
    if encoder is None or decoder is None:
        raise TypeError("it has no decoder that attends to the output of an image encoder")
    return _EncoderDecoder(module, encoder, decoder)


def _decoder_keyword(module: nn.Module) -> str:
    """The name of the argument that takes the decoder's tokens."""
    parameters = inspect.signature(module.forward).parameters
    return next(name for name in ("decoder_input_ids", _IDS) if name in parameters)


def trial_run(
    module: nn.Module, config: Any, image_size: tuple[int, int] | None = None
) -> ImageToTextTask:
    """Run the model once on an image of the first shape that it accepts.

    Args:
        module: the model.
        config: its configuration.
        image_size: height and width to try first.

    Raises:
        TypeError: if it accepts none, or is not an encoder-decoder model.
    """
    model: Any = as_encoder_decoder(module)
    parameters = inspect.signature(model.forward).parameters
    name = PATCHES if PATCHES in parameters else PIXELS
    token = image_token(config) if hasattr(module, "get_image_features") else None

    def run(shape: tuple[int, ...], _: int) -> Any:
        images = torch.zeros(1, *shape)
        feeds: dict[str, Any] = {cache_keyword(model) or "": empty_cache(), name: images}
        if token is not None:
            feeds[_IDS] = torch.tensor([[token] * _count_tokens(module, images)])
        tokens = torch.ones(1, 2, dtype=torch.long)
        with torch.no_grad():
            return feeds, model(**feeds, decoder_input_ids=tokens, use_cache=True)

    candidates = ((shape, 0) for shape in image_shapes(name, _vision_config(model), image_size))
    shape, _, (feeds, output) = find_input_shape(candidates, run, name)
    own, cross = describe_caches(model, output)
    ids = feeds.get(_IDS)
    with torch.no_grad():
        encoded = output if ids is not None else model.get_encoder()(**{name: feeds[name]})
    hidden = encoded.encoder_last_hidden_state if ids is not None else encoded[0]
    return ImageToTextTask(
        logits_of(output).shape[-1],
        read_max_positions(config, module),
        cross,
        hidden.shape[-1],
        shape,
        hidden.shape[1],
        cache=own,
        image_token_id=token,
        image_tokens=None if ids is None else ids.shape[1],
        output_class=type(encoded) if ids is None else None,
    )


def _count_tokens(module: Any, images: Tensor) -> int:
    """The number of embeddings of an image."""
    rows: Tensor = module.get_image_features(**{PIXELS: images}, return_dict=True).pooler_output
    return rows.numel() // rows.shape[-1]


def _vision_config(model: Any) -> Any:
    """The configuration of the part that reads images."""
    configs = (model.get_encoder().config, model.config)
    return next((c.vision_config for c in configs if hasattr(c, "vision_config")), configs[0])


def image_shapes(
    name: str, config: Any, image_size: tuple[int, int] | None = None
) -> Iterator[tuple[int, ...]]:
    """Shapes that the pixel values of an image, or its flattened patches, may have.

    An image has the size ``image_size``, the one in the configuration, or a usual one.
    """
    channels = getattr(config, "num_channels", None) or 3
    patch, size = getattr(config, "patch_size", None), getattr(config, "image_size", None)
    if name == PATCHES:
        yield _ROWS[0] * _COLUMNS, 2 + channels * (patch or 16) ** 2
        return
    for each in filter(None, (image_size, *((size,) if size else _SIZES))):
        height, width = (each, each) if isinstance(each, int) else each
        yield channels, height, width
