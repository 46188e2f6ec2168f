"""Export vision-language models: an image encoder, and a decoder of tokens that reads its output.

The model's own ``forward`` puts image embeddings into the places of the image token. It runs with
``get_image_features`` replaced by the graph's input.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgetie.bundle.names import DECODER, ENCODER, GRID, IMAGE, IMAGE_LM, PIXELS
from edgetie.export.attention.broadcast import BroadcastAttention
from edgetie.export.comparison import (
    Agreement,
    Array,
    DecoderRunner,
    ReferenceRun,
    cpu_session,
    largest_error,
    left_pad,
)
from edgetie.export.images.encoder_output import EncoderOutput, embed, image_encoder, run_encoder
from edgetie.export.images.find_image_inputs import find_image_inputs
from edgetie.export.images.image_inputs import ImageInputs
from edgetie.export.images.place_rows import PlaceRows
from edgetie.export.tasks import causal
from edgetie.export.tasks.base import Graph, GraphInput, torch_logits
from edgetie.export.tasks.causal import CausalTask
from edgetie.runtime.images.embeddings import ImageEmbeddings
from edgetie.sources.source import cache_keyword

_ROWS = 5  # of an example; as many as there are image tokens
_BEFORE, _AFTER = 3, 6  # tokens around the images, compared with torch
_STEPS = 3  # of those after them, one at a time
_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class ImageTask(CausalTask):
    """See :class:`edgetie.export.tasks.causal.CausalTask`.

    Attributes:
        image: the encoder's inputs.
        output: of the encoder.
        position_axes: number of positions of each token, if there are several.
        sees_prompt: whether the tokens of a prompt attend to all of it (a prefix language model).
    """

    name = IMAGE_LM

    image: ImageInputs
    output: EncoderOutput
    position_axes: int | None
    sees_prompt: bool

    @property
    def token(self) -> int:
        """The image token."""
        assert self.image_token_id is not None
        return self.image_token_id

    @property
    def embeddings(self) -> list[str]:
        """Names of the encoder's outputs."""
        return [IMAGE, *(f"{IMAGE}.{index}" for index in range(1, len(self.output.no_rows)))]

    def graphs(self, module: nn.Module, *, fused: bool, last_only: bool) -> list[Graph]:
        dtype = next(module.parameters()).dtype
        encoder = Graph(
            ENCODER,
            _Encoder(module, self.image),
            self.image.tensors(dtype),
            outputs=self.embeddings,
            parameters=0,
            finish=self.image.finish,
        )
        return [encoder, self._decoder_graph(module, fused, last_only)]

    def _decoder_graph(self, module: nn.Module, fused: bool, last_only: bool) -> Graph:
        model = ImageLM(
            module, self.token, self.output, self.image.names, sees_prompt=self.sees_prompt
        )
        (decoder,) = super().graphs(model, fused=fused, last_only=last_only)
        ids, mask, *past = decoder.tensors
        dtype = next(module.parameters()).dtype
        tensors = [ids, mask]
        for name in self.embeddings:  # torch takes a tensor for one input only
            rows = torch.zeros(_ROWS, self.output.hidden_size, dtype=dtype)
            tensors.append(GraphInput(name, rows, {0: "rows"}))
        if self.position_axes:
            positions = torch.ones(self.position_axes, *ids.example.shape, dtype=torch.long)
            axes = {axis + 1: name for axis, name in ids.axes.items()}
            tensors.append(GraphInput("position_ids", positions, axes))
        wrapper = _Decoder(decoder.module, model, len(self.embeddings), bool(self.position_axes))
        return Graph(DECODER, wrapper, (*tensors, *past), decoder.outputs, parameters=2)

    def run_reference(self, module: nn.Module) -> ReferenceRun:
        random = np.random.default_rng(0)
        inputs: dict[str, Array] = {}
        logits = []
        for index in range(2):
            feeds = self.image.example(random, larger=index == 1)
            rows = embed(module, feeds)[0]
            text = random.integers(0, self.vocab_size - 1, _BEFORE + _AFTER)
            text += text >= self.token
            start = getattr(module.config, "vision_start_token_id", None) or 0
            if 0 < start < self.vocab_size:  # without it there may be no image
                text[_BEFORE - 1] = start
            image = [self.token] * len(rows)
            ids = np.array([[*text[:_BEFORE], *image, *text[_BEFORE:]]])
            kwargs: dict[str, Any] = dict.fromkeys(_token_types(module), self._types(ids))
            if self.position_axes:
                kwargs["position_ids"] = _torch_positions(module, ids, feeds[GRID], self.token)
            logits.append(torch_logits(module, input_ids=ids, **kwargs, **feeds)[0])
            inputs |= {f"{name}.{index}": value.numpy() for name, value in feeds.items()}
            inputs[f"ids.{index}"] = ids
        return ReferenceRun(inputs, np.concatenate(logits))

    def _types(self, ids: Array) -> Array:
        """Token types of a prompt and steps after it, as the model's processor sets them."""
        if self.sees_prompt:
            types = np.arange(ids.shape[1])[None] >= ids.shape[1] - _STEPS
        else:
            types = ids == self.token
        return np.asarray(types, np.int64)

    def compare(self, directory: Path, reference: ReferenceRun, dtype: type[Any]) -> Agreement:
        feeds = [
            {name: reference.inputs[f"{name}.{i}"] for name in self.image.names} for i in range(2)
        ]
        ids = [reference.inputs[f"ids.{i}"] for i in range(2)]
        with cpu_session(directory / ENCODER) as encoder:
            names = [value.name for value in encoder.get_inputs()]
            images = [encoder.run(None, {n: _as(f[n], dtype) for n in names}) for f in feeds]
        positions = [
            self._positions(tokens[0], image[0], grids)
            for tokens, image, grids in zip(ids, images, feeds, strict=True)
        ]
        expected = np.split(reference.logits, [ids[0].shape[1]])
        with cpu_session(directory / DECODER) as session:
            run = DecoderRunner(session, self.cache, dtype)
            errors = [
                run.errors(partial(self._decoder_feeds, *each), logits, len(logits) - _STEPS)
                for *each, logits in zip(ids, images, positions, expected, strict=True)
            ]
            tokens, mask = left_pad([each[0, :-_STEPS] for each in ids])
            feeds_padded = [tokens, mask, *map(np.concatenate, zip(*images, strict=True))]
            if self.position_axes:
                feeds_padded.append(_left_pad([each[:, :-_STEPS] for each in positions]))
            logits, _ = run(feeds_padded)
        padded = max(largest_error(logits[i, -1], expected[i][-_STEPS - 1]) for i in range(2))
        prefill, cached = map(max, zip(*errors, strict=True))
        return reference.agreement(prefill, cached, padded)

    def _positions(self, ids: Array, rows: Array, feeds: Mapping[str, Array]) -> Array:
        if not self.position_axes:
            return np.arange(len(ids))[None]
        return ImageEmbeddings({IMAGE: rows}, feeds[GRID]).positions(ids, self.token)

    def _decoder_feeds(
        self, ids: Array, rows: list[Array], positions: Array, start: int, end: int
    ) -> list[Array]:
        feeds = [ids[:, start:end], np.ones((1, end), np.int64)]
        feeds += [each[:0] if start else each for each in rows]
        if self.position_axes:
            feeds.append(positions[:, None, start:end])
        return feeds


def _torch_positions(module: nn.Module, ids: Array, grid: Tensor, token: int) -> Tensor:
    """Compute the positions ``(axes, 1, count)`` of a prompt as the model does to generate text."""
    compute = image_encoder(module).get_rope_index
    tokens = torch.from_numpy(ids)
    arguments = {
        "input_ids": tokens,
        "image_grid_thw": grid,
        "attention_mask": torch.ones_like(tokens),
        "mm_token_type_ids": (tokens == token).int(),
    }
    parameters = inspect.signature(compute).parameters
    positions: Tensor = compute(**{k: v for k, v in arguments.items() if k in parameters})[0]
    return positions


def _left_pad(positions: Sequence[Array]) -> Array:
    """Pad positions ``(axes, count)`` of prompts on the left to ``(axes, batch, longest)``."""
    longest = max(each.shape[1] for each in positions)
    return np.stack([np.pad(p, ((0, 0), (longest - p.shape[1], 0))) for p in positions], 1)


def _as(value: Array, dtype: type[Any]) -> Array:
    return value.astype(dtype) if value.dtype.kind == "f" else value


class _Encoder(nn.Module):
    """Images to embeddings ``(rows, hidden_size)``."""

    def __init__(self, model: nn.Module, image: ImageInputs) -> None:
        super().__init__()
        self.model, self.image = model, image

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs = dict(zip(self.image.names, tensors, strict=True))
        with BroadcastAttention(), self.image.traced(self.model, inputs) as arguments:
            return tuple(embed(self.model, arguments))


class ImageLM(nn.Module):
    """A vision-language model that is called like a language model, with images' embeddings.

    Attributes:
        names: of the encoder's inputs without which ``forward`` reads no images.
        rows: image embeddings, ``(count, hidden_size)`` each, as the encoder returns them.
        ids, positions: of all tokens; ``input_ids`` index them. ``None`` if they are the tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        token: int,
        output: EncoderOutput,
        names: Sequence[str],
        *,
        sees_prompt: bool,
    ) -> None:
        super().__init__()
        self.model, self.token, self.output = model, token, output
        parameters = inspect.signature(model.forward).parameters
        self.names = [
            name
            for name in names
            if name.endswith(PIXELS) or parameters[name].default is Parameter.empty
        ]
        self.sees_prompt = sees_prompt
        inner = getattr(model, "language_model", model)
        self.cache_keyword = cache_keyword(model) or cache_keyword(inner)
        self.rows = output.no_rows
        self.ids: Tensor | None = None
        self.positions: Tensor | None = None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        use_cache: bool | None = None,
    ) -> Any:
        kwargs: dict[str, Any] = {"attention_mask": attention_mask, "use_cache": use_cache}
        if self.ids is not None and self.positions is not None:
            indices, input_ids = input_ids, self.ids.flatten()[input_ids]
            position_ids = self.positions.flatten(1)[:, indices]
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        if self.cache_keyword and cache is not None:
            kwargs[self.cache_keyword] = cache
        is_image = input_ids == self.token
        past = 0 if attention_mask is None else attention_mask.shape[1] - input_ids.shape[1]
        types = torch.zeros_like(input_ids) if self.sees_prompt else is_image.long()
        types = nn.functional.pad(types, (past, 0), value=int(self.sees_prompt))
        kwargs |= dict.fromkeys(_token_types(self.model), types)
        output = self.output.make(self.rows)
        images = dict.fromkeys(self.names, self.rows[0])  # are not read
        owner = image_encoder(self.model)
        owner.get_image_features = lambda *_, **__: output
        try:
            with PlaceRows(is_image):
                outputs = self.model(input_ids=input_ids, **images, **kwargs)
            return getattr(outputs, "language_model_outputs", outputs)  # has the cache
        finally:
            del owner.get_image_features


class _Decoder(nn.Module):
    """Tokens, image embeddings and positions to logits."""

    def __init__(self, decoder: nn.Module, model: ImageLM, count: int, has_positions: bool) -> None:
        super().__init__()
        self.decoder, self.model = decoder, model
        self.count, self.has_positions = count, has_positions

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *others: Tensor) -> Any:
        self.model.rows, others = others[: self.count], others[self.count :]
        if self.has_positions:
            self.model.ids, self.model.positions, others = input_ids, others[0], others[1:]
            count = input_ids.shape[0] * input_ids.shape[1]
            input_ids = torch.arange(count).view(input_ids.shape)
        try:
            return self.decoder(input_ids, attention_mask, *others)
        finally:
            self.model.rows = self.model.output.no_rows
            self.model.ids = self.model.positions = None


def is_image_model(module: nn.Module) -> bool:
    """Whether a model is a decoder of tokens with an image encoder."""
    is_pair = getattr(getattr(module, "config", None), "is_encoder_decoder", False)
    return hasattr(module, "get_image_features") and not is_pair


def trial_run(module: nn.Module, config: Any) -> ImageTask:
    """Run encoder and decoder once.

    Raises:
        TypeError: if the encoder accepts no shape of images.
    """
    token = image_token(config)
    image, rows = find_image_inputs(
        module, image_encoder(module).get_image_features, partial(embed, module)
    )
    feeds, others = (image.example(np.random.default_rng(seed)) for seed in range(2))
    output = EncoderOutput.of(run_encoder(module, feeds), run_encoder(module, others))
    sees_prompt = _sees_prompt(module, token, len(rows[0]), feeds)
    model = ImageLM(module, token, output, image.names, sees_prompt=sees_prompt)
    base = causal.trial_run(model, config)
    positions = hasattr(image_encoder(module), "get_rope_index")
    return ImageTask(
        **vars(replace(base, image_token_id=token)),
        image=image,
        output=output,
        position_axes=3 if positions else None,
        sees_prompt=sees_prompt,
    )


def image_token(config: Any) -> int:
    for name in ("image_token_id", "image_token_index"):
        if isinstance(token := getattr(config, name, None), int):
            return token
    raise TypeError("its configuration has no image_token_id, so images have no places in a prompt")


def _token_types(module: nn.Module) -> list[str]:
    parameters = inspect.signature(module.forward).parameters
    return [name for name in _TOKEN_TYPES if name in parameters]


def _sees_prompt(module: nn.Module, token: int, count: int, feeds: Mapping[str, Tensor]) -> bool:
    """Whether a token of type 0 attends to a later one of type 0."""
    if "token_type_ids" not in _token_types(module):
        return False
    first, *others = (each for each in range(3) if each != token)
    logits = [
        torch_logits(
            module,
            input_ids=np.array([[first, *[token] * count, other]]),
            token_type_ids=np.zeros((1, count + 2), np.int64),
            **feeds,
        )[0, 0]
        for other in (first, others[0])
    ]
    return not np.array_equal(*logits)
