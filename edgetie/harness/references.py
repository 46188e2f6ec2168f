"""Models an accuracy check compares: a bundle in ONNX Runtime, or a torch module.

Both answer the same two questions: the logits at every position of a sequence, and the greedy
continuation of a prompt.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgetie.bundle import MANIFEST, Bundle, open_bundle
from edgetie.errors import BundleError, SourceError
from edgetie.runtime.decoder import Decoder
from edgetie.runtime.session import one_line, open_session
from edgetie.sources.calling import cache_keyword

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

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

    Raises:
        BundleError: if the bundle cannot be read.
        ProviderError: if the provider is absent or does not take the model.
    """

    def __init__(
        self, bundle: str | Path | Bundle, *, provider: str = "cpu", threads: int | None = None
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        self.session = open_session(self.bundle, provider=provider, threads=threads, logits="all")
        if self.bundle.task != "masked-lm":
            Decoder(self.session, 1, 1)  # raises where the model is no decoder

    @property
    def name(self) -> str:
        whole = self.bundle.manifest is not None
        return str(self.bundle.directory if whole else self.bundle.model_path)

    def logits(self, ids: Ids) -> Floats:
        feeds: dict[str, npt.NDArray[Any]] = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(ids.shape[1])[None],
            "token_type_ids": np.zeros_like(ids),
        }
        for tensor in self.session.cache:
            shape = (1, tensor.kv_heads, 0, tensor.head_size)
            feeds[tensor.past] = np.zeros(shape, self.session.cache_dtype)
        unknown = [value.name for value in self.session.inputs if value.name not in feeds]
        if unknown:
            raise BundleError(f"{self.name}: input {unknown[0]} is not known")
        known = {value.name: feeds[value.name] for value in self.session.inputs}
        options = ort.RunOptions()
        options.log_severity_level = 4  # an error is raised, it need not be logged too
        try:
            result: Floats = self.session.ort.run(["logits"], known, options)[0][0]
        except Exception as error:  # pybind11 classes without a common base
            raise BundleError(f"{self.name}: ONNX Runtime failed: {one_line(error)}") from error
        return result.astype(np.float32, copy=False)

    def greedy(self, prompt_ids: list[int], n: int) -> list[int]:
        decoder = Decoder(self.session, 1, len(prompt_ids) + n)
        ids = np.array([prompt_ids], np.int64)
        logits = decoder.prefill(ids, np.ones_like(ids))
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
    """

    def __init__(self, module: torch.nn.Module, name: str) -> None:
        import torch

        self.name = name
        self._torch = torch
        self._module = module.eval()
        self._parameters = inspect.signature(module.forward).parameters
        self._cache = cache_keyword(module) if hasattr(module, "config") else None
        self._device = next((p.device for p in module.parameters()), torch.device("cpu"))

    def logits(self, ids: Ids) -> Floats:
        return self._numpy(self._call(self._tensor(ids)))

    def greedy(self, prompt_ids: list[int], n: int) -> list[int]:
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

    def _call(self, ids: torch.Tensor, past: Any = None) -> Any:
        extra: dict[str, Any] = {}
        if self._cache is not None:
            extra = {"use_cache": True, self._cache: past}
        elif "position_ids" in self._parameters:
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
    text: str, *, trust_remote_code: bool = False, allow_pickle: bool = False
) -> Reference:
    """Open what ``--reference`` names.

    A bundle, an ``.onnx`` file or a directory with one and no torch weights runs in ONNX Runtime
    on the CPU; anything else is a torch model, see :func:`edgetie.sources.load_source`.

    Raises:
        BundleError: if it is ONNX and cannot be read.
        SourceError: if there is no such model, or it needs a permission that was not given.
    """
    path = Path(text)
    if _is_onnx(path):
        return BundleReference(path)
    from edgetie.sources import load_source

    source = load_source(text, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    return TorchReference(source.module, text)


def _is_onnx(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix == ".onnx"
    if (path / MANIFEST).is_file():
        return True
    torch_weights = any(next(path.glob(pattern), None) for pattern in _TORCH_WEIGHTS)
    return not torch_weights and next(path.glob("*.onnx"), None) is not None
