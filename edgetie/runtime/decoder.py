"""Decoding step by step: buffers bound once to the device, the KV cache kept where it is.

Where the model can (``Session.cache_in_place``), past and present are one buffer of the full
length, allocated once: a step then binds nothing but the mask, which grows. Other models return a
longer cache at every step, which becomes the next step's input without a copy; models without a
cache read the whole sequence again.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgetie.errors import BundleError, EdgetieError
from edgetie.runtime.session import CacheTensor, Session, one_line

_KNOWN_INPUTS = ("input_ids", "attention_mask", "position_ids")
Logits = NDArray[np.float32]
Ids = NDArray[np.int64]


class Decoder:
    """A batch of sequences that a model continues, token by token.

    Attributes:
        session: the opened model.
        batch: number of sequences.
        max_length: longest sequence, padding included, that it has room for.
        length: tokens of each sequence so far, padding included.
    """

    def __init__(self, session: Session, batch: int, max_length: int) -> None:
        """Allocate buffers; their memory is used only as far as sequences grow.

        Raises:
            BundleError: if the model is no decoder this class can drive.
            EdgetieError: if ``max_length`` is more than the model takes.
        """
        names = {value.name: value for value in session.inputs}
        model = session.bundle.model_path
        cached = {tensor.past for tensor in session.cache}
        unknown = [name for name in names if name not in cached and name not in _KNOWN_INPUTS]
        outputs = {value.name: value for value in session.outputs}
        if unknown or "input_ids" not in names or "logits" not in outputs:
            what = f"input {unknown[0]}" if unknown else "no input_ids or no logits"
            raise BundleError(
                f"{model}: {what}; only decoders with input_ids, attention_mask, position_ids, "
                "past_key_values and logits can generate"
            )
        manifest = session.bundle.manifest
        limit = manifest.signature.max_positions if manifest is not None else None
        if limit is not None and max_length > limit:
            raise EdgetieError(f"{model}: takes {limit} tokens, not {max_length}; ask for fewer")
        self.session, self.batch, self.max_length, self.length = session, batch, max_length, 0
        self._dtypes = {name: np.dtype(names[name].dtype) for name in names if name not in cached}
        self._logits_dtype = np.dtype(outputs["logits"].dtype)
        self._vocabulary: int | str = outputs["logits"].shape[-1]
        self._on_cpu = session.device == "cpu"
        self._mask = np.zeros((batch, max_length), np.int64)
        self._ids = np.zeros((batch, max_length), np.int64)  # read again only without a cache
        self._bound: dict[str, NDArray[Any]] = {}
        self._scratch = {
            name: np.empty(batch * max_length, dtype) for name, dtype in self._dtypes.items()
        }
        self._binding = session.ort.io_binding()
        self._cache = [self._empty_cache(tensor) for tensor in session.cache]
        self._bind_cache()
