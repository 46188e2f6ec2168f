"""Export vision-language models: an image encoder, and a decoder of tokens that reads its output.

The model's own ``forward`` puts image embeddings into the places of the image token. It runs with
``get_image_features`` replaced by the graph's input.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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
from edgetie.export.images.image_inputs import ImageInputs, find_image_inputs
from edgetie.export.tasks import causal
from edgetie.export.tasks.base import Graph, GraphInput, torch_logits
from edgetie.export.tasks.causal import CausalTask
from edgetie.runtime.images.embeddings import ImageEmbeddings
from edgetie.sources.source import cache_keyword

_ROWS = 5  # of an example; as many as there are image tokens
_BEFORE, _AFTER = 3, 6  # tokens around the images, compared with torch
_STEPS = 3  # of those after them, one at a time
_DEEPER = "deepstack_features"
_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class ImageTask(CausalTask):
    """See :class:`edgetie.export.tasks.causal.CausalTask`.

    Attributes:
        image: the encoder's inputs.
        output: of the encoder.
        hidden_size: of an image embedding.
        position_axes: number of positions of each token, if there are several.
        sees_prompt: whether the tokens of a prompt attend to all of it (a prefix language model).
    """

    name = IMAGE_LM

    image: ImageInputs
    output: "EncoderOutput"
    hidden_size: int
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
        return [IMAGE, *(f"{IMAGE}.{index + 1}" for index in range(len(self.output.deeper or ())))]

    def graphs(self, module: nn.Module, *, fused: bool, last_only: bool) -> list[Graph]:
        dtype = next(module.parameters()).dtype
        encoder = Graph(
            ENCODER,
            _Encoder(module, self.image),
            self.image.tensors(dtype),
            outputs=self.embeddings,
            parameters=0,
        )
        return [encoder, self._decoder_graph(module, fused, last_only)]

    def _decoder_graph(self, module: nn.Module, fused: bool, last_only: bool) -> Graph:
        model = ImageLM(module, self.token, self.output, self.sees_prompt)
        (decoder,) = super().graphs(model, fused=fused, last_only=last_only)
        ids, mask, *past = decoder.tensors
        dtype = next(module.parameters()).dtype
        tensors = [ids, mask]
        for name in self.embeddings:  # torch takes a tensor for one input only
            rows = torch.zeros(_ROWS, self.hidden_size, dtype=dtype)
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
            rows = _embed(module, feeds)[0]
            text = random.integers(0, self.vocab_size - 1, _BEFORE + _AFTER)
            text += text >= self.token
            image = [self.token] * len(rows)
            ids = np.array([[*text[:_BEFORE], *image, *text[_BEFORE:]]])
            types = dict.fromkeys(_token_types(module), self._types(ids))
            logits.append(torch_logits(module, input_ids=ids, **types, **feeds)[0])
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
        feeds = dict(zip(self.image.names, tensors, strict=True))
        with BroadcastAttention(), self.image.traceable(self.model, feeds):
            return tuple(_embed(self.model, feeds))


class ImageLM(nn.Module):
    """A vision-language model that is called like a language model, with images' embeddings.

    Attributes:
        rows: image embeddings, ``(count, hidden_size)`` each, as the encoder returns them.
        ids, positions: of all tokens; ``input_ids`` index them. ``None`` if they are the tokens.
    """

    def __init__(
        self, model: nn.Module, token: int, output: "EncoderOutput", sees_prompt: bool
    ) -> None:
        super().__init__()
        self.model, self.token, self.output = model, token, output
        self.sees_prompt = sees_prompt
        self.rows: tuple[Tensor, ...] | None = None
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
        keyword = cache_keyword(self.model)
        if keyword and cache is not None:
            kwargs[keyword] = cache
        if self.rows is None:
            return self.model(input_ids=input_ids, **kwargs)
        is_image = input_ids == self.token
        past = 0 if attention_mask is None else attention_mask.shape[1] - input_ids.shape[1]
        types = is_image.long() * (not self.sees_prompt)
        types = nn.functional.pad(types, (past, 0), value=int(self.sees_prompt))
        kwargs |= dict.fromkeys(_token_types(self.model), types)
        output = self.output.make(self.rows)
        pixels = {PIXELS: self.rows[0]}
        owner = _image_encoder(self.model)
        owner.get_image_features = lambda *_, **__: output
        try:
            with PlaceRows(is_image):
                return self.model(input_ids=input_ids, **pixels, **kwargs)
        finally:
            del owner.get_image_features


class PlaceRows(TorchFunctionMode):
    """Puts rows into the places of a mask ``(batch, sequence)``, in order."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask[..., None]
        self.order = (mask.flatten().cumsum(0) * mask.flatten()).view(mask.shape)  # from 1
        self._selected: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.masked_scatter and args[0].ndim == 3:
            return torch.where(self.mask, self._spread(args[2]), args[0])
        if func is torch.Tensor.__getitem__ and _is_row_mask(args[1]):  # all rows, for the places
            self._selected.append(args[0].clone())
            return self._selected[-1]
        if func is torch.Tensor.add and any(args[0] is each for each in self._selected):
            return args[0] + self._spread(args[1])
        if func is torch.Tensor.__setitem__ and _is_row_mask(args[1]):
            return args[0].copy_(torch.where(self.mask, args[2], args[0]))
        return func(*args, **(kwargs or {}))

    def _spread(self, rows: Tensor) -> Tensor:
        rows = rows.reshape(-1, rows.shape[-1])
        return torch.cat([rows.new_zeros(1, rows.shape[-1]), rows])[self.order]


def _is_row_mask(index: Any) -> bool:
    """Whether an index ``(mask, :)`` chooses tokens of a batch."""
    first = index[0] if isinstance(index, tuple) and len(index) == 2 else index
    return isinstance(first, Tensor) and first.dtype == torch.bool and first.ndim == 2


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
            self.model.rows = self.model.ids = self.model.positions = None


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
        module, _image_encoder(module).get_image_features, partial(_embed, module)
    )
    feeds = image.example(np.random.default_rng(0))
    output = EncoderOutput.of(_run_encoder(module, feeds))
    sees_prompt = _sees_prompt(module, token, len(rows[0]), feeds)
    base = causal.trial_run(ImageLM(module, token, output, sees_prompt), config)
    positions = hasattr(_image_encoder(module), "get_rope_index")
    return ImageTask(
        **vars(replace(base, image_token_id=token)),
        image=image,
        output=output,
        hidden_size=rows[0].shape[-1],
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


def _image_encoder(module: Any) -> Any:
    """The part whose ``get_image_features`` has the encoder's parameters."""
    inner = getattr(module, "base_model", module)
    return inner if hasattr(inner, "get_image_features") else module


class _Rows(NamedTuple):
    """How image embeddings are stored: a tensor of so many axes, or one for each image."""

    rank: int
    is_list: bool

    @classmethod
    def of(cls, value: Any) -> "_Rows":
        is_list = isinstance(value, (list, tuple))
        return cls((value[0] if is_list else value).ndim, is_list)

    def make(self, rows: Tensor) -> Any:
        """Store ``(count, hidden_size)`` like this."""
        tensor = rows.view(*[1] * (self.rank - 2), *rows.shape)
        return [tensor] if self.is_list else tensor


def _flat(value: Any) -> Tensor:
    """Join image embeddings to ``(count, hidden_size)``."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


@dataclass(frozen=True)
class EncoderOutput:
    """How ``forward`` gets image embeddings.

    Attributes:
        kind: class of what ``get_image_features`` returns.
        first: of ``pooler_output``.
        deeper: of ``deepstack_features``, which deeper layers add; ``None`` if there is none.
    """

    kind: Any
    first: _Rows
    deeper: tuple[_Rows, ...] | None

    @classmethod
    def of(cls, output: Any) -> "EncoderOutput":
        """Describe what the encoder returned."""
        deeper = getattr(output, _DEEPER, None)
        layers = None if deeper is None else tuple(map(_Rows.of, deeper))
        return cls(type(output), _Rows.of(output.pooler_output), layers)

    def make(self, rows: Sequence[Tensor]) -> Any:
        """Make such an output from embeddings ``(count, hidden_size)``."""
        first, *others = rows
        fields = {"pooler_output": self.first.make(first)}
        if self.deeper is not None:
            layers = zip(self.deeper, others, strict=True)
            fields[_DEEPER] = [layer.make(value) for layer, value in layers]
        return self.kind(**fields)


def _run_encoder(module: nn.Module, feeds: Mapping[str, Any]) -> Any:
    encode = _image_encoder(module).get_image_features
    with torch.no_grad():
        return encode(**feeds, return_dict=True)


def _embed(module: nn.Module, feeds: Mapping[str, Any]) -> list[Tensor]:
    """Compute image embeddings, ``(count, hidden_size)`` each."""
    output = _run_encoder(module, feeds)
    deeper = getattr(output, _DEEPER, None) or ()
    return [_flat(value) for value in (output.pooler_output, *deeper)]
