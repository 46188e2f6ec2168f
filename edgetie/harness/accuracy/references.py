"""Models an accuracy check compares: a bundle in ONNX Runtime, or a torch module.

Both answer the same two questions: the logits at every position of a sequence, and the greedy
continuation of a prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.bundle.names import AUDIO, MANIFEST, SPEECH
from edgetie.errors import BundleError, SourceError, summarize
from edgetie.runtime.audio.embeddings import embed_audio, noise, with_audio_tokens
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.decoding.fixed_shape_decoder import FixedDecoder
from edgetie.runtime.decoding.generation import decoder_for
from edgetie.runtime.session import open_session
from edgetie.sources.cache_argument import cache_keyword

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

_SEED = 20240229
_TORCH_WEIGHTS = ("*.safetensors", "*.gguf", "*.bin", "*.pt", "*.pth")


class Reference(Protocol):
    """A language model that can be compared with another; only a causal one continues prompts."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def logits(self, ids: Ids) -> Floats:
        """Logits at every position: ``(1, S)`` int64 to ``(S, vocabulary)`` float32.

        Raises:
            BundleError, SourceError: if the model fails, on more tokens than it takes for one.
        """

    def greedy(self, prompt_ids: list[int], n: int) -> list[int]:
        """The ``n`` tokens after the prompt, each the likeliest; end tokens do not stop it."""


class BundleReference:
    """A bundle, or a bare ONNX decoder, run by :mod:`edgetie.runtime`.

    Args:
        bundle: it, or a path to it.
        provider: execution provider.
        threads: intra-op threads; ``None`` takes ONNX Runtime's default.
        strict: take no provider that leaves nodes to another one.

    Attributes:
        choices: values for inputs with a default, given to every graph that has them.

    Raises:
        BundleError: if the bundle cannot be read.
        ProviderError: if the provider is absent or does not take the model.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        *,
        provider: str = "cpu",
        threads: int | None = None,
        strict: bool = False,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        self.session = open_session(
            self.bundle, provider=provider, threads=threads, logits="all", strict=strict
        )
        self.choices: dict[str, npt.NDArray[Any]] = {}
        if self.bundle.task != "masked-lm":
            decoder_for(self.session, 1, 1, 1)  # raises where the model is no decoder

    @property
    def name(self) -> str:
        return str(self.bundle.path)

    @property
    def nodes_per_provider(self) -> dict[str, int]:
        """Nodes of the optimized graph, by ONNX Runtime's provider name."""
        return self.session.nodes_per_provider

    @property
    def fallback_nodes(self) -> dict[str, int]:
        """By operator, nodes that run elsewhere than asked."""
        return self.session.fallback_nodes

    @property
    def is_audio_model(self) -> bool:
        """Whether its encoder reads sound: then each sequence comes with noise of its own."""
        encoder = self.session.encoder
        return encoder is not None and encoder.get_inputs()[0].name != "input_ids"

    @property
    def longest(self) -> int | None:
        """Most tokens of a sequence, beside what is heard; ``None`` if that is not known."""
        most = self.bundle.manifest.signature.max_positions
        if most is None or not self.is_audio_model or self.session.cross:
            return most
        one = np.zeros((1, 1), np.int64)
        return most + 1 - int(self._with_sound(one, 1)[0].shape[1])

    def logits(self, ids: Ids) -> Floats:
        if self.bundle.has_fixed_shapes:
            decoder = decoder_for(self.session, 1, ids.shape[1], 0)
            rows = [decoder.step(token) for token in ids.T]
            decoder.reset()
            rows[-1] = decoder.prefill(ids)  # so that both graphs are looked at
            return np.concatenate(rows)
        feeds: dict[str, npt.NDArray[Any]] = {"input_ids": ids}
        if self.session.cross:
            source = self._sound(ids) if self.is_audio_model else {"input_ids": ids}
            if not self.is_audio_model:
                source["attention_mask"] = np.ones_like(ids)
            made = [tensor.present for tensor in self.session.cross]
            keys = self._run(self.session.encoder, made, source)
            feeds |= {t.past: key for t, key in zip(self.session.cross, keys, strict=True)}
            feeds["encoder_attention_mask"] = np.ones_like(ids)
            feeds["input_ids"] = _shifted(ids, self._start)
        elif self.is_audio_model:
            feeds["input_ids"], feeds[AUDIO] = self._with_sound(ids, ids.shape[1])
        read = feeds["input_ids"]
        feeds |= {
            "attention_mask": np.ones_like(read),
            "position_ids": np.arange(read.shape[1])[None],
            "token_type_ids": np.zeros_like(read),
        }
        for tensor in self.session.cache:
            feeds[tensor.past] = np.zeros(tensor.shape(1), self.session.cache_dtype)
        unknown = [value.name for value in self.session.inputs if value.name not in feeds]
        if unknown:
            raise BundleError(f"{self.name}: input {unknown[0]} is not known")
        known = {value.name: feeds[value.name] for value in self.session.inputs}
        result: Floats = self._run(self.session.ort, ["logits"], known)[0][0]
        return result[-ids.shape[1] :].astype(np.float32, copy=False)

    def _sound(self, ids: Ids) -> dict[str, npt.NDArray[Any]]:
        """Noise for the encoder, the same for the same tokens."""
        return noise(self.session.encoder, np.random.default_rng([_SEED, *ids[0].tolist()]))

    def _with_sound(self, ids: Ids, length: int) -> tuple[Ids, Floats]:
        token = self.bundle.manifest.signature.audio_token_id
        return with_audio_tokens(ids, embed_audio(self.session, self._sound(ids)), token, length)

    @property
    def _start(self) -> list[int]:
        return self.bundle.manifest.signature.start_token_ids

    def _run(self, session: Any, outputs: list[str], feeds: dict[str, npt.NDArray[Any]]) -> Any:
        options = ort.RunOptions()
        options.log_severity_level = 4  # an error is raised, it need not be logged too
        optional = {value.name for value in session.get_overridable_initializers()}
        feeds = feeds | {name: v for name, v in self.choices.items() if name in optional}
        for value in session.get_inputs():
            if value.type == "tensor(int32)":
                feeds[value.name] = feeds[value.name].astype(np.int32)
        try:
            return session.run(outputs, feeds, options)
        except Exception as error:  # pybind11 classes without a common base
            raise BundleError(f"{self.name}: ONNX Runtime failed: {summarize(error)}") from error

    def greedy(self, prompt_ids: list[int], n: int) -> list[int]:
        ids, audio_embeddings = np.array([prompt_ids], np.int64), None
        if self.is_audio_model and not self.session.cross:
            ids, audio_embeddings = self._with_sound(ids, ids.shape[1] + n)
        decoder = decoder_for(self.session, 1, ids.shape[1], n)
        if isinstance(decoder, Decoder | FixedDecoder):
            logits = decoder.prefill(ids, audio_embeddings=audio_embeddings)
        else:
            logits = decoder.prefill(
                next(iter(self._sound(ids).values())) if self.is_audio_model else ids
            )
        tokens = [int(logits[0].argmax())]
        while len(tokens) < n:
            logits = decoder.step(np.array(tokens[-1:], np.int64))
            tokens.append(int(logits[0].argmax()))
        return tokens


class TorchReference:
    """A torch module, in evaluation mode, on the device it is on.

    Args:
        module: its ``forward`` takes the token ids ``(1, S)`` first, and ``position_ids`` where it
            has such a parameter; it returns logits ``(1, S, vocabulary)``, or an object or tuple
            that holds them. A transformers model generates with its own KV cache, any other
            module reads the whole prefix again for each token.
        name: what reports call it.
        start: what the decoder starts with, of a model with an encoder.
    """

    def __init__(
        self, module: torch.nn.Module, name: str, start: Sequence[int] | None = None
    ) -> None:
        import torch

        self.name = name
        self._torch = torch
        self._module = module.eval()
        positions = inspect.signature(module.forward).parameters.get("position_ids")
        # where they can be left out, a model knows best: RoBERTa counts from its padding token on
        self._counts = positions is not None and positions.default is inspect.Parameter.empty
        self._cache = cache_keyword(module) if hasattr(module, "config") else None
        self._device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self._start = None if start is None else list(start)

    def logits(self, ids: Ids) -> Floats:
        if self._start is not None:
            return self._numpy(self._call(self._tensor(ids), target=_shifted(ids, self._start)))
        return self._numpy(self._call(self._tensor(ids)))

    def greedy(self, prompt_ids: list[int], n: int) -> list[int]:
        if self._start is not None:
            source, target = self._tensor(np.array([prompt_ids], np.int64)), list(self._start)
            for _ in range(n):
                output = self._call(source, target=np.array([target], np.int64))
                target.append(int(self._numpy(output)[-1].argmax()))
            return target[len(self._start) :]
        tokens = list(prompt_ids)
        past: Any = None
        for _ in range(n):
            seen = len(tokens) - 1 if past is not None else 0
            output = self._call(self._tensor(np.array([tokens[seen:]], np.int64)), past)
            past = getattr(output, self._cache, None) if self._cache else None
            tokens.append(int(self._numpy(output)[-1].argmax()))
        return tokens[len(prompt_ids) :]

    def _tensor(self, ids: Ids) -> torch.Tensor:
        return self._torch.from_numpy(ids).to(self._device)

    def _call(self, ids: torch.Tensor, past: Any = None, target: Ids | None = None) -> Any:
        extra: dict[str, Any] = {}
        if target is not None:
            extra = {"decoder_input_ids": self._tensor(target)}
        elif self._cache is not None:
            extra = {"use_cache": True, self._cache: past}
        elif self._counts:
            extra = {"position_ids": self._torch.arange(ids.shape[1], device=self._device)[None]}
        try:
            with self._torch.inference_mode():
                return self._module(ids, **extra)
        except Exception as error:  # it is the user's code
            what = " ".join(str(error).split())[:300]
            raise SourceError(f"{self.name}: {type(error).__name__} in forward: {what}") from error

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
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Reference:
    """Open what ``--reference`` names.

    A bundle, an ``.onnx`` file or a directory with one and no torch weights runs in ONNX Runtime
    on the CPU; anything else is a torch model, see :func:`edgetie.sources.load.load_source`.

    Args:
        text: as it was named.
        bundle: what is compared with it; its manifest says which task torch's weights serve.
        trust_remote_code: allow a model directory to run Python code of its own.
        allow_pickle: allow pickled weights.

    Raises:
        BundleError: if it is ONNX and cannot be read.
        SourceError: if there is no such model, or it needs a permission that was not given.
    """
    path = Path(text)
    if _is_onnx(path):
        return BundleReference(path)
    from edgetie.sources.load import load_source
    from edgetie.sources.task_detection import TASKS

    task = "auto" if bundle is None or bundle.is_bare else bundle.task
    source = load_source(
        text,
        task=task if task in TASKS else "auto",
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    if source.task == SPEECH or hasattr(source.module, "get_audio_features"):
        raise SourceError(f"{text}: hears; compare a bundle of it with another bundle of it")
    start = _start_tokens(source.module) if source.task == "seq2seq-lm" else None
    return TorchReference(source.module, text, start)


def _start_tokens(module: torch.nn.Module) -> list[int]:
    """What transformers starts a decoder with, see :func:`start_token_ids`."""
    settings = [getattr(module, name, None) for name in ("generation_config", "config")]

    def setting(name: str) -> int | None:
        found = (getattr(each, name, None) for each in settings)
        return next((value for value in found if isinstance(value, int)), None)

    start = setting("decoder_start_token_id")
    start = setting("bos_token_id") if start is None else start
    return [token for token in (start, setting("forced_bos_token_id")) if token is not None]


def _shifted(ids: Ids, start: Sequence[int]) -> Ids:
    """What a decoder reads to predict ``ids`` ``(1, S)``, its first token given: ``(1, S)``."""
    return np.concatenate([np.array([list(start)[-1:]], np.int64), ids[:, :-1]], axis=1)


def _is_onnx(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix == ".onnx"
    if (path / MANIFEST).is_file():
        return True
    torch_weights = any(next(path.glob(pattern), None) for pattern in _TORCH_WEIGHTS)
    return not torch_weights and next(path.glob("*.onnx"), None) is not None
