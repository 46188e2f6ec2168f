"""Models an accuracy check compares: a bundle in ONNX Runtime, or a torch module."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.bundle.names import AUDIO, ENCODER_MASK, IMAGE_LM, IMAGE_TO_TEXT, MANIFEST, SPEECH
from edgetie.errors import BundleError, EdgetieError, SourceError, summarize
from edgetie.harness.accuracy.samples import Prompt, encoder_inputs, open_images, token_inputs
from edgetie.runtime.audio.embeddings import reads_audio
from edgetie.runtime.decoding.generation import make_decoder
from edgetie.runtime.images.embeddings import ImageEmbeddings
from edgetie.runtime.session import open_session
from edgetie.sources.source import cache_keyword

if TYPE_CHECKING:
    import torch

    from edgetie.sources.source import Source

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

_TORCH_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")


class Reference(Protocol):
    """A language model that can be compared with another. Only causal ones continue prompts."""

    name: str

    def logits(self, ids: Ids) -> Floats:
        """Compute logits at every position: ``(1, S)`` int64 to ``(S, vocabulary)`` float32.

        Raises:
            BundleError, SourceError: if the model fails, for example on too many tokens.
        """

    def greedy(self, prompt_ids: list[int], n: int) -> list[int]:
        """Generate ``n`` tokens, each the likeliest. End tokens do not stop it."""


class BundleReference:
    """A bundle, or a bare ONNX decoder, run by :mod:`edgetie.runtime`.

    Arguments are those of :func:`edgetie.runtime.session.open_session`, and ``images`` is an image
    file or a directory of them for a model that reads images
    (:class:`~edgetie.runtime.images.samples.SampleImages`). ``adapter`` is the name of a LoRA
    adapter to run it with.

    Attributes:
        provider: short name of its execution provider; never ``auto``.
        adapter: name of the LoRA adapter that it runs with.
        choices: values for inputs that have a default, for every graph that has these inputs.
        onnxruntime_version: version of onnxruntime that runs it.
        media: description of what its encoder reads before each sequence; empty if that is text, or
            there is no encoder.

    Raises:
        BundleError, ProviderError: if the bundle cannot be read or the provider not used.
    """

    onnxruntime_version: str = ort.__version__

    def __init__(
        self,
        bundle: str | Path | Bundle,
        *,
        provider: str = "cpu",
        threads: int | None = None,
        strict: bool = False,
        images: Path | None = None,
        prepack: bool = True,
        adapter: str | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        self.session = open_session(
            self.bundle, provider=provider, threads=threads, logits="all", strict=strict,
            prepack=prepack,
        )  # fmt: skip
        self.session.use_adapter(adapter)
        self.adapter = adapter
        self.provider = self.session.provider
        self.name = str(self.bundle.path)
        self._images = open_images(self.session, images)
        self.media = "noise" if reads_audio(self.session) else ""
        if self._images is not None:
            self.media = self._images.description
        self.choices: dict[str, npt.NDArray[Any]] = {}
        if self.bundle.task != "masked-lm":
            make_decoder(self.session, 1, 1, 1)  # raises if the model is not a decoder

    @property
    def nodes_per_provider(self) -> dict[str, int]:
        return self.session.nodes_per_provider

    @property
    def fallback_nodes(self) -> dict[str, int]:
        return self.session.fallback_nodes

    @property
    def longest(self) -> int | None:
        """Most tokens of a sequence, those of images or audio excluded; ``None`` if unknown."""
        most = self.bundle.manifest.signature.max_positions
        if most is None or not self.media or self.session.cross:
            return most
        one = np.zeros((1, 1), np.int64)
        if self._images is None:
            media = [self.encoder_inputs(one)]
        else:
            media = [self._images.feeds(index) for index in range(len(self._images))]
        prompts = (Prompt(self.session, one, 0, inputs) for inputs in media)
        return most + 1 - max(prompt.tokens for prompt in prompts)

    def encoder_inputs(self, ids: Ids) -> dict[str, npt.NDArray[Any]]:
        """Make the inputs of its encoder for a sequence ``(1, S)``; none if it has no encoder."""
        return encoder_inputs(self.session, ids, self._images)

    def encode(self, ids: Ids) -> list[Floats]:
        """Run the encoder on what comes before a sequence ``(1, S)``; returns its outputs."""
        encoder = self.session.encoder
        if encoder is None:
            return []
        names = [output.name for output in encoder.get_outputs()]
        outputs = self._run(encoder, names, self.encoder_inputs(ids))
        return [output.astype(np.float32, copy=False) for output in outputs]

    def logits(self, ids: Ids) -> Floats:
        if self.bundle.has_fixed_shapes:
            decoder = make_decoder(self.session, 1, ids.shape[1], 0)
            logits = [decoder.step(token) for token in ids.T]
            decoder.reset()
            logits[-1] = decoder.prefill(ids)  # so that both graphs are measured
            return np.concatenate(logits)
        tokens, feeds = ids, {}
        if self.session.cross:
            outputs = [tensor.present for tensor in self.session.cross]
            inputs = self.encoder_inputs(ids)
            cache = self._run(self.session.encoder, outputs, inputs)
            feeds = {t.past: array for t, array in zip(self.session.cross, cache, strict=True)}
            feeds[ENCODER_MASK] = inputs.get("attention_mask", np.ones_like(ids))
            tokens = _shifted(ids, self.bundle.manifest.signature.start_token_ids)
        elif self.media:
            tokens, embeddings = self._prompt(ids, 0).inputs()
            feeds = self._embeddings(tokens, **embeddings)
        feeds = token_inputs(tokens) | feeds
        for tensor in self.session.cache:
            feeds[tensor.past] = np.zeros(tensor.shape(1), self.session.cache_dtype)
        names = [value.name for value in self.session.inputs]
        if unknown := [name for name in names if name not in feeds]:
            raise BundleError(f"{self.name}: input {unknown[0]} is not known")
        inputs = {name: feeds[name] for name in names}
        result: Floats = self._run(self.session.ort, ["logits"], inputs)[0][0]
        return result[-ids.shape[1] :].astype(np.float32, copy=False)

    def _prompt(self, ids: Ids, new_tokens: int) -> Prompt:
        return Prompt(self.session, ids, new_tokens, self.encoder_inputs(ids))

    def _embeddings(
        self,
        tokens: Ids,
        audio_embeddings: Floats | None = None,
        image_embeddings: ImageEmbeddings | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Make the inputs for embeddings that replace tokens."""
        if image_embeddings is None:
            assert audio_embeddings is not None
            return {AUDIO: audio_embeddings}
        feeds: dict[str, npt.NDArray[Any]] = dict(image_embeddings.rows)
        token = self.bundle.manifest.signature.image_token_id
        if len(image_embeddings.grids) and token is not None:
            feeds["position_ids"] = image_embeddings.positions(tokens[0], token)[:, None]
        return feeds

    def _run(self, session: Any, outputs: list[str], feeds: dict[str, npt.NDArray[Any]]) -> Any:
        options = ort.RunOptions()
        options.log_severity_level = 4  # an error is raised, so it need not be logged
        optional = {value.name for value in session.get_overridable_initializers()}
        choices = self.choices | self.session.adapter_tensors
        feeds = feeds | {name: v for name, v in choices.items() if name in optional}
        for value in session.get_inputs():
            if value.type == "tensor(int32)":
                feeds[value.name] = feeds[value.name].astype(np.int32)
        try:
            return session.run(outputs, feeds, options)
        except Exception as error:  # pybind11 classes without a common base
            raise BundleError(f"{self.name}: ONNX Runtime failed: {summarize(error)}") from error

    def greedy(self, prompt_ids: list[int], n: int) -> list[int]:
        prompt = self._prompt(np.array([prompt_ids], np.int64), n)
        return [int(token[0]) for token in prompt.generate(n)]


class TorchReference:
    """A torch module, in evaluation mode, on the device it is on.

    Args:
        module: its ``forward`` takes the token ids ``(1, S)`` first, and ``position_ids`` if it
            requires them. It returns logits ``(1, S, vocabulary)``, or an object or tuple that
            contains them. Without a transformers KV cache it reads the prefix for each token.
        name: name in reports.
        start: tokens that the decoder starts with, for a model with an encoder.
    """

    def __init__(
        self, module: torch.nn.Module, name: str, start: Sequence[int] | None = None
    ) -> None:
        import torch

        self.name = name
        self._torch = torch
        self._module = module.eval()
        positions = inspect.signature(module.forward).parameters.get("position_ids")
        # positions that can be left out are the model's own: RoBERTa counts from its padding token
        no_default = inspect.Parameter.empty
        self._needs_positions = positions is not None and positions.default is no_default
        self._cache = cache_keyword(module) if hasattr(module, "config") else None
        self._device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self._start = None if start is None else list(start)

    def logits(self, ids: Ids) -> Floats:
        target = None if self._start is None else _shifted(ids, self._start)
        return self._numpy(self._call(ids, target=target))

    def greedy(self, prompt_ids: list[int], n: int) -> list[int]:
        start = prompt_ids if self._start is None else self._start
        tokens = list(start)
        past: Any = None
        for _ in range(n):
            if self._start is not None:
                output = self._call([prompt_ids], target=[tokens])
            else:
                seen = len(tokens) - 1 if past is not None else 0
                output = self._call([tokens[seen:]], past)
                past = getattr(output, self._cache, None) if self._cache else None
            tokens.append(int(self._numpy(output)[-1].argmax()))
        return tokens[len(start) :]

    def _call(self, ids: Any, past: Any = None, target: Any = None) -> Any:
        def tensor(values: Any) -> Any:
            return self._torch.tensor(values, dtype=self._torch.int64, device=self._device)

        extra: dict[str, Any] = {}
        if target is not None:
            extra = {"decoder_input_ids": tensor(target)}
        elif self._cache is not None:
            extra = {"use_cache": True, self._cache: past}
        elif self._needs_positions:
            extra = {"position_ids": tensor([range(len(ids[0]))])}
        try:
            with self._torch.inference_mode():
                return self._module(tensor(ids), **extra)
        except Exception as error:  # it is the user's code
            message = " ".join(str(error).split())[:300]
            message = f"{self.name}: {type(error).__name__} in forward: {message}"
            raise SourceError(message) from error

    def _numpy(self, output: Any) -> Floats:
        logits = getattr(output, "logits", output)
        logits = logits[0] if isinstance(logits, (tuple, list)) else logits
        if not isinstance(logits, self._torch.Tensor) or logits.ndim != 3:
            raise SourceError(
                f"{self.name}: forward returned {type(logits).__name__}, "
                "not logits of shape (batch, sequence, vocabulary)"
            )
        result: Floats = logits[0].float().cpu().numpy()
        return result


def resolve_reference(
    text: str,
    *,
    bundle: Bundle | None = None,
    images: Path | None = None,
    adapter: str | None = None,
    adapter_source: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Reference:
    """Open a reference: a bundle or ONNX decoder on ONNX Runtime's CPU provider, or a torch model.

    Args:
        text: path or name. A bundle, an ``.onnx`` file or a directory with one and no torch weights
            runs in ONNX Runtime, anything else in torch, see
            :func:`edgetie.sources.load.load_source`.
        bundle: the bundle to compare with it. Its manifest has the task of torch's weights.
        images: what a model reads that reads images, see :class:`BundleReference`.
        adapter: name of the LoRA adapter to run it with.
        adapter_source: directory of that adapter in peft's format, which peft merges into a torch
            model. A bundle has its own.
        trust_remote_code: allow a model directory to run its own Python code.
        allow_pickle: allow pickled weights.

    Raises:
        BundleError: if it is ONNX and cannot be read.
        SourceError: if there is no such model, or it needs a permission that is missing, or the
            adapter of a torch model is not named, not one of it, or peft is not installed.
    """
    if _is_onnx(Path(text)):
        if adapter_source is not None:
            message = "of a reference in torch; a bundle has its own adapters, leave it out"
            raise EdgetieError(message, parameter="adapter_source", value=str(adapter_source))
        return BundleReference(text, images=images, adapter=adapter)
    if adapter is not None and adapter_source is None:
        raise SourceError(
            f"{text}: is not a bundle; name the directory of adapter {adapter} in peft's format too"
        )
    from edgetie.sources.load import load_source
    from edgetie.sources.task_detection import TASKS

    task = "auto" if bundle is None or bundle.is_bare else bundle.task
    source = load_source(
        text,
        task=task if task in TASKS else "auto",
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        dequantize=True,
    )
    reads_images = source.task in (IMAGE_LM, IMAGE_TO_TEXT)
    if reads_images or source.task == SPEECH or hasattr(source.module, "get_audio_features"):
        kind = "image" if reads_images else "audio"
        raise SourceError(f"{text}: is an {kind} model; compare a bundle of it with another bundle")
    if adapter_source is not None:
        source.module = _merge_adapter(source, Path(adapter_source))
        text = f"{text} with {adapter_source}"
    start = _start_tokens(source.module) if source.task == "seq2seq-lm" else None
    return TorchReference(source.module, text, start)


def _merge_adapter(source: Source, folder: Path) -> torch.nn.Module:
    """Let peft merge an adapter into a torch model."""
    from edgetie.sources.peft_adapter import check_peft_adapter

    check_peft_adapter(folder)
    try:
        from peft import PeftModel
    except ImportError as error:
        raise SourceError(
            f"{folder}: comparing an adapter with torch needs peft; pip install peft"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names that the base lacks, which is an error here
        try:
            model = PeftModel.from_pretrained(source.module, str(folder))
            merged: torch.nn.Module = model.merge_and_unload().eval()
        except Exception as error:  # of any kind, if it is an adapter of another model
            raise SourceError(
                f"{folder}: peft cannot add it to {source.name} ({summarize(error)})"
            ) from error
    return merged


def _start_tokens(module: torch.nn.Module) -> list[int]:
    """List the tokens that transformers starts a decoder with."""
    configs = [getattr(module, name, None) for name in ("generation_config", "config")]

    def setting(name: str) -> list[int]:
        values = (getattr(config, name, None) for config in configs)
        return [value for value in values if isinstance(value, int)][:1]

    start = setting("decoder_start_token_id") or setting("bos_token_id")
    return start + setting("forced_bos_token_id")


def _shifted(ids: Ids, start: Sequence[int]) -> Ids:
    """Shift ``ids`` ``(1, S)`` by one: what a decoder reads to predict them, ``(1, S)``."""
    return np.concatenate([np.array([list(start)[-1:]], np.int64), ids[:, :-1]], axis=1)


def _is_onnx(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix == ".onnx"
    suffixes = {file.suffix for file in path.iterdir()}
    has_torch_weights = not suffixes.isdisjoint(_TORCH_WEIGHTS)
    return (path / MANIFEST).is_file() or (".onnx" in suffixes and not has_torch_weights)
