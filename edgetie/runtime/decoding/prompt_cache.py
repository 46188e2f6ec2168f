"""Keep the keys and values of a prompt's beginning in a file, which a later process maps.

The file has the format of safetensors: the tokens, what the model remembers of them, and a
checksum. Its metadata tell which model wrote it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetie.bundle.atomic import atomic_files
from edgetie.bundle.bundle import Bundle
from edgetie.bundle.manifest import sha256_of
from edgetie.bundle.names import IMAGE_LM
from edgetie.errors import BundleError, EdgetieError
from edgetie.runtime.adapters import adapter_path
from edgetie.runtime.decoding.decoder import Decoder

if TYPE_CHECKING:
    from edgetie.runtime.decoding.generation import TokenDecoder

_FORMAT = "edgetie prompt cache 1"
_TOKENS, _CHECKSUM, _METADATA, _WEIGHTS = "tokens", "crc32", "__metadata__", "weights"
_SIZE_BYTES = 8  # of the header, which comes after its size
_LARGEST_HEADER = 1 << 24  # bytes
_ADVICE = "delete it or name another file"


class PromptCache:
    """A file with what a model has read: the beginning of a prompt.

    If there is none, it is written while a prompt is read, for the prompts that follow. Of a prompt
    that begins with the same tokens, only the others are read. If a prompt has less than half of
    the file's tokens, the file is replaced. A model with recurrent states, which has no state of
    fewer tokens than the file's, uses all of them or none.

    Attributes:
        path: of the file.
        cached_tokens: tokens of the last prompt that were not read, as the file had them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Name the file; it is opened when a prompt is read."""
        self.path = Path(path)
        self.cached_tokens = 0

    def prefill(
        self, decoder: TokenDecoder, prompt: Sequence[int], beginning: int | None = None
    ) -> NDArray[np.float32]:
        """Read a prompt with a new decoder for one sequence, and write the file if it is needed.

        Args:
            decoder: has read nothing.
            prompt: its tokens.
            beginning: how many of them a file that is written gets; ``None`` for all but the last,
                which must be read again for its logits.

        Returns:
            Logits ``(1, vocabulary)`` of the next token.

        Raises:
            BundleError: if the file is damaged, another model's or cannot be written, the model has
                no cache that can be kept, or ONNX Runtime fails on it.
            EdgetieError: if the decoder has several sequences, or no room for the prompt.
        """
        decoder = _require_decoder(decoder)
        tokens = np.array(prompt, np.int64)
        count, self.cached_tokens = self._load(decoder, tokens)
        last = len(tokens) - 1
        beginning = max(self.cached_tokens, last if beginning is None else min(beginning, last))
        if self.cached_tokens * 2 < max(count, 1) and beginning:
            if beginning > self.cached_tokens:
                decoder.prefill(tokens[None, self.cached_tokens : beginning])
            self._write(decoder, tokens[:beginning])
        return decoder.prefill(tokens[None, decoder.length :])

    def _load(self, decoder: Decoder, prompt: NDArray[np.int64]) -> tuple[int, int]:
        """Let the decoder go on where the file ends; returns its tokens, and how many it used."""
        try:
            if not self.path.exists():
                return 0, 0
            with ThreadPoolExecutor(1) as background:  # which adds up while tensors are copied
                tensors, checksum = self._map(decoder, background)
                count, used = _resume(decoder, tensors, prompt)
                if checksum.result() != tensors[_CHECKSUM][0]:
                    decoder.reset()
                    raise ValueError("another checksum")
            return count, used
        except OSError as error:
            raise BundleError(
                f"{self.path}: cannot be read ({error.strerror}); name another file"
            ) from error
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise BundleError(
                f"{self.path}: is not a prompt cache, or is damaged; {_ADVICE}"
            ) from error

    def _map(
        self, decoder: Decoder, background: Executor
    ) -> tuple[dict[str, NDArray[Any]], Future[int]]:
        """Map the tensors of the file; returns them and their checksum, when it is computed.

        Raises:
            OSError: if the file cannot be opened.
            BundleError: if it is another model's.
            ValueError, KeyError, TypeError, IndexError, RecursionError: if it is damaged.
        """
        with self.path.open("rb") as file:
            size = int.from_bytes(file.read(_SIZE_BYTES), "little")
            header = json.loads(file.read(min(size, _LARGEST_HEADER)))
            metadata, count = header.pop(_METADATA), header[_TOKENS]["shape"][0]
            if metadata["format"] != _FORMAT or type(count) is not int or count < 1:
                raise ValueError("no header of a prompt cache")
            self._require_model(metadata, decoder)
            entries = _entries(decoder, count)
            start, end = _SIZE_BYTES + size, entries[_CHECKSUM]["data_offsets"][1]
            if header != entries or os.fstat(file.fileno()).st_size != start + end:
                raise ValueError("tensors of other sizes")
            data = np.memmap(file, np.uint8, "r", start)
        tensors = {}
        for name, entry in entries.items():
            first, after = entry["data_offsets"]
            values = data[first:after].view(_numpy_dtype(entry["dtype"]))
            tensors[name] = values.reshape(entry["shape"])
        return tensors, background.submit(zlib.crc32, data[:first].data)  # the last is the checksum

    def _require_model(self, written: dict[str, str], decoder: Decoder) -> None:
        own = _identity(decoder)
        if written.get(_WEIGHTS) == own[_WEIGHTS]:
            return
        name = next(name for name, value in own.items() if written.get(name) != value)
        raise BundleError(
            f"{self.path}: was written with another model ({name}: {written.get(name)}, here "
            f"{own[name]}); {_ADVICE}"
        )

    def _write(self, decoder: Decoder, tokens: NDArray[np.int64]) -> None:
        metadata = {"format": _FORMAT, **_identity(decoder)}
        header = json.dumps({_METADATA: metadata} | _entries(decoder, len(tokens))).encode()
        header += b" " * (-len(header) % 8)  # tensors are aligned
        checksum = 0
        with (
            atomic_files(self.path, force=True) as folder,
            (folder / self.path.name).open("wb") as file,
        ):
            file.write(len(header).to_bytes(_SIZE_BYTES, "little") + header)
            for values in (tokens, *decoder.state().values()):
                data = np.ascontiguousarray(values).data
                file.write(data)
                checksum = zlib.crc32(data, checksum)
            file.write(np.uint32(checksum).tobytes())


def _resume(
    decoder: Decoder, tensors: dict[str, NDArray[Any]], prompt: NDArray[np.int64]
) -> tuple[int, int]:
    """Let a decoder go on after the tokens that a prompt has in common with a file.

    Returns:
        The tokens of the file, and how many were used.
    """
    tokens = tensors[_TOKENS]
    size = min(len(tokens), len(prompt) - 1)  # the last one must be read for its logits
    different = np.flatnonzero(tokens[:size] != prompt[:size])
    used = int(different[0]) if len(different) else size
    if used < len(tokens) and not all(tensor.grows for tensor in decoder.session.cache):
        used = 0
    if used:
        decoder.resume(tensors, used)
    return len(tokens), used


def _require_decoder(decoder: TokenDecoder) -> Decoder:
    """Refuse decoders whose cache is not kept."""
    session = decoder.session
    path = session.bundle.directory
    if decoder.batch != 1:
        raise EdgetieError(
            f"is for one prompt, not for {decoder.batch}; generate one after the other",
            parameter="prompt_cache",
        )
    if session.cross:
        why = "has an encoder, which reads the prompt"
    elif not isinstance(decoder, Decoder):
        why = "has fixed shapes, whose cache has another place for every token"
    elif not session.cache:
        why = "has no keys and values that could be kept"
    elif session.bundle.task == IMAGE_LM and not session.cache_in_place:
        why = "may let the tokens of a prompt see those that follow"
    elif session.device != "cpu":
        why = f"has its keys and values in the memory of {session.device}"
    else:
        return decoder
    raise BundleError(f"{path}: {why}; generate without a prompt cache")


def _identity(decoder: Decoder) -> dict[str, str]:
    """Tell which model this is; only its weights matter, the rest explains a difference."""
    bundle = decoder.session.bundle
    return {
        "name": str(bundle.manifest.source.get("name")),
        "precision": bundle.manifest.precision,
        "adapter": str(decoder.adapter),
        _WEIGHTS: _fingerprint(bundle, decoder.adapter),
    }


def _fingerprint(bundle: Bundle, adapter: str | None) -> str:
    """Hash the graphs and weights. Those in a manifest, which has their hashes, are not read."""
    files = [*bundle.model_paths, *bundle.data_files]
    files += [] if adapter is None else [adapter_path(bundle.directory, adapter)]
    hashes = []
    for path in files:
        entry = bundle.manifest.files.get(path.name)
        hashes.append(entry["sha256"] if entry else sha256_of(path))
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:32]


def _entries(decoder: Decoder, count: int) -> dict[str, Any]:
    """Make a file's header without metadata: dtype, shape and place of each tensor, in order."""
    session = decoder.session
    dtypes = {info.name: info.dtype for info in session.inputs}
    tensors: list[tuple[str, str, tuple[int, ...]]] = [(_TOKENS, "int64", (count,))]
    tensors += [(t.past, dtypes[t.past], t.shape(1, count)) for t in session.cache]
    tensors.append((_CHECKSUM, "uint32", (1,)))
    entries, end = {}, 0
    for name, numpy_name, shape in tensors:
        dtype = np.dtype(numpy_name)
        start, end = end, end + math.prod(shape) * dtype.itemsize
        kind = f"{dtype.kind.upper()}{8 * dtype.itemsize}"  # as safetensors spells it
        entries[name] = {"dtype": kind, "shape": [*shape], "data_offsets": [start, end]}
    return entries


def _numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype that safetensors spells so: ``F32`` is ``f4``."""
    return np.dtype(f"{name[0].lower()}{int(name[1:]) // 8}")
