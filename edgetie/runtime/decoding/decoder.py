"""Decoding step by step: buffers bound once to the device, the cache kept where it is.

Where the model can (``Session.cache_in_place``), keys and values, past and present, are one buffer
of the full length, allocated once: a step then binds nothing but the mask, which grows. Other
models return a longer cache at every step, which becomes the next step's input without a copy, and
so does the state of a recurrent layer; models without a cache read the whole sequence again.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgetie.bundle.names import AUDIO, AUDIO_LM
from edgetie.errors import BundleError, EdgetieError, summarize
from edgetie.graph.tensors import CacheTensor, TensorInfo
from edgetie.runtime.memory import MappedFiles, release_heap
from edgetie.runtime.session import Session

_TOKEN_INPUTS = ("input_ids", "attention_mask", "position_ids")
_STEPS_BETWEEN_RELEASES = 2


class Decoder:
    """A batch of sequences that a model continues, token by token.

    Attributes:
        session: the opened model.
        batch: number of sequences.
        max_length: longest sequence there is room for, padding included.
        length: tokens of each sequence so far, padding included.
    """

    def __init__(self, session: Session, batch: int, max_length: int) -> None:
        """Allocate buffers; memory is used only as far as sequences grow.

        Raises:
            BundleError: if the model is no decoder that can be driven token by token.
            EdgetieError: if ``max_length`` is more than the model takes.
        """
        if session.bundle.task not in ("causal-lm", AUDIO_LM):
            raise BundleError(
                f"{session.bundle.directory}: a bundle for {session.bundle.task}; only decoders "
                "(causal-lm) generate token by token"
            )
        self.session, self.batch, self.max_length, self.length = session, batch, max_length, 0
        self._model = session.bundle.model_path
        inputs, logits = self._known_inputs()
        signature = session.bundle.manifest.signature
        limit = signature.max_positions
        if limit is not None and max_length > limit:
            raise EdgetieError(f"{self._model}: takes {limit} tokens, not {max_length}")
        self._pads_left = signature.padding == "left"
        self._mask = np.zeros((batch, max_length), np.int64)
        self._ids = None if session.cache else np.zeros((batch, max_length), np.int64)
        self._inputs = {
            name: np.empty(batch * max_length, self._dtype(info)) for name, info in inputs.items()
        }
        self._heard = self._rows = self._silence()
        self._bound: dict[str, tuple[int, ...]] = {}
        self._steps = 0
        self._touched: MappedFiles | None = None
        self._logits_dtype = self._dtype(logits)
        self._vocabulary = logits.shape[-1]
        self._logits = np.empty(0, self._logits_dtype)
        self._binding = session.ort.io_binding()
        self._buffers: list[Any] = []
        # a long prompt needs far more memory than a step; the arena gives the difference back
        self._after_prefill = ort.RunOptions()
        self._after_prefill.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        in_place = [t for t in session.cache if session.cache_in_place and t.grows]
        for tensor in in_place:
            self._bind_in_place(tensor)
        self._returned = [tensor for tensor in session.cache if tensor not in in_place]
        self.reset()

    def reset(self) -> None:
        """Forget the sequences; buffers are kept."""
        self.length = 0
        for tensor in self._returned:
            zeros = np.zeros(tensor.shape(self.batch), self.session.cache_dtype)
            empty = ort.OrtValue.ortvalue_from_numpy(zeros, self.session.device, 0)
            self._binding.bind_ortvalue_input(tensor.past, empty)

    def prefill(
        self,
        ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64] | None = None,
        audio_embeddings: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Append tokens to every sequence.

        Args:
            ids: ``(batch, count)`` token ids.
            attention_mask: ``(batch, count)``, 0 where ``ids`` is padding, on either side;
                ``None`` if there is none.
            heard: audio embeddings (:func:`edgetie.runtime.audio.embeddings.embed_audio`): a row
                for each place that the ids hold for one, or rows for every token to come.

        Returns:
            Logits ``(batch, vocabulary)`` of each sequence's last token.

        Raises:
            EdgetieError: if ``max_length`` would be exceeded, a row is padding only, or padded on
                the right for a model that takes padding on the left only, or if several sequences
                that have begun get several tokens where attention and its cache are one operator.
            BundleError: if ONNX Runtime fails on the model.
        """
        mask = np.ones_like(ids) if attention_mask is None else attention_mask
        if "attention_mask" not in self._inputs and not mask.all():
            raise EdgetieError(f"{self._model}: has no attention_mask, so it takes no padding")
        behind = self.length > 0 and ids.shape[1] > 1
        if behind and self.batch > 1 and self.session.cache_in_place:
            raise EdgetieError(
                f"{self._model}: takes several tokens of several sequences as a first prompt only; "
                "go on with step"
            )
        empty = np.flatnonzero(~mask.any(axis=1))
        if len(empty):
            raise EdgetieError(f"sequence {empty[0]} has no token; give at least one")
        if self._pads_left and (np.diff(mask, axis=1) < 0).any():
            raise EdgetieError(f"{self._model}: takes padding on the left only")
        self._steps = 0
        self._heard = self._silence() if audio_embeddings is None else audio_embeddings
        return self._forward(ids, mask, self._after_prefill)

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token, ``tokens[b]``, to every sequence; otherwise as :meth:`prefill`."""
        lookups = self.session.lookups
        if self._steps == 0:  # here, not in prefill: the first token is not kept waiting
            if lookups is not None:
                self._touched = lookups.touched()
                lookups.release()  # a prompt reads far more pages than rows
            release_heap()
        elif self._touched is not None and self._steps % _STEPS_BETWEEN_RELEASES == 0:
            self._touched.release()  # each row looked up brings 64 KB of neighbours
        self._steps += 1
        return self._forward(tokens[:, None], 1, None)

    def _forward(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64] | int, options: Any
    ) -> NDArray[np.float32]:
        first, end = self.length, self.length + ids.shape[1]
        if end > self.max_length:
            raise EdgetieError(
                f"{end} tokens exceed max_length {self.max_length}; make the Decoder longer"
            )
        self._mask[:, first:end] = mask
        if self._ids is not None:
            self._ids[:, first:end] = ids
            first, ids = 0, self._ids[:, :end]
        self._feed("input_ids", ids)
        self._feed_heard(first, end)
        if "attention_mask" in self._inputs:
            self._feed("attention_mask", self._mask[:, :end])
        if "position_ids" in self._inputs:
            positions = self._mask[:, :end].cumsum(axis=1)[:, first:] - 1
            self._feed("position_ids", np.maximum(positions, 0))
        self._bind_logits(1 if self.session.logits == "last" else end - first)
        self._run(options)
        self.length = end
        if self._logits.shape[1] == 1:
            rows = self._logits[:, 0]
        else:
            rows = self._logits[np.arange(self.batch), self._last_tokens(first, end)]
        return rows.astype(np.float32)

    def _last_tokens(self, first: int, end: int) -> NDArray[np.int64]:
        """Where the logits of each row's last token are, among those of columns first to end."""
        mask = self._mask[:, first:end]
        packed, count = self.session.packed, end - first
        last: NDArray[np.int64] = (
            mask.sum(axis=1) - 1 if packed else count - 1 - mask[:, ::-1].argmax(axis=1)
        )
        return last

    def _feed(self, name: str, values: NDArray[np.int64]) -> None:
        """Copy ``values`` into the buffer of an input; bind it again if its shape has changed."""
        buffer = self._inputs[name][: values.size].reshape(values.shape)
        buffer[...] = values
        # on the CPU what is bound is the buffer itself; elsewhere binding copies to the device
        if self.session.device != "cpu" or self._bound.get(name) != values.shape:
            self._binding.bind_cpu_input(name, buffer)
            self._bound[name] = values.shape

    def _silence(self) -> NDArray[np.float32]:
        """What is heard where there is no sound."""
        info = next((info for info in self.session.inputs if info.name == AUDIO), None)
        if info is None:
            return np.zeros(0, np.float32)
        sizes = (0,) if len(info.shape) == 2 else (self.batch, self.max_length)
        return np.zeros((*sizes, int(info.shape[-1])), self._dtype(info))

    def _feed_heard(self, first: int, end: int) -> None:
        """Bind what is heard at tokens ``first`` to ``end``."""
        rows = self._heard
        if rows.ndim == 3:  # a row for each token
            rows = rows[:, first:end]
            if rows.shape[1] < end - first:
                raise EdgetieError(f"token {end} comes after the end of the sound")
        elif self._steps and self._ids is None:
            rows = rows[:0]  # the places are those of the prompt
        if rows.ndim > 1:
            self._rows = np.ascontiguousarray(rows)
            self._binding.bind_cpu_input(AUDIO, self._rows)

    def _bind_logits(self, tokens: int) -> None:
        if not isinstance(self._vocabulary, int):  # known after the first run
            self._binding.bind_output("logits", "cpu")
            return
        shape = (self.batch, tokens, self._vocabulary)
        if self._bound.get("logits") != shape:
            self._bound["logits"] = shape
            self._logits = np.empty(shape, self._logits_dtype)
            self._binding.bind_output(
                "logits", "cpu", 0, self._logits_dtype, shape, self._logits.ctypes.data
            )

    def _run(self, options: Any) -> None:
        for tensor in self._returned:
            self._binding.bind_output(tensor.present, self.session.device)
        try:
            self.session.ort.run_with_iobinding(self._binding, options)
        except Exception as error:  # pybind11 classes without a common base
            raise BundleError(f"{self._model}: ONNX Runtime failed: {summarize(error)}") from error
        if self._returned or not isinstance(self._vocabulary, int):
            in_place = len(self.session.cache) - len(self._returned)  # bound first
            logits, *presents = self._binding.get_outputs()[in_place:]
            for tensor, present in zip(self._returned, presents, strict=True):
                self._binding.bind_ortvalue_input(tensor.past, present)
            if not isinstance(self._vocabulary, int):
                self._logits = logits.numpy()
                self._vocabulary = self._logits.shape[-1]

    def _bind_in_place(self, tensor: CacheTensor) -> None:
        shape = tensor.shape(self.batch, self.max_length)
        dtype = np.dtype(self.session.cache_dtype)
        if self.session.device == "cpu":
            memory = _untouched(math.prod(shape) * dtype.itemsize)
            pointer = np.frombuffer(memory, np.uint8).ctypes.data
            self._buffers.append(memory)
            self._binding.bind_input(tensor.past, "cpu", 0, dtype, shape, pointer)
            self._binding.bind_output(tensor.present, "cpu", 0, dtype, shape, pointer)
        else:
            value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, self.session.device, 0)
            self._binding.bind_ortvalue_input(tensor.past, value)
            self._binding.bind_ortvalue_output(tensor.present, value)

    def _known_inputs(self) -> tuple[dict[str, TensorInfo], TensorInfo]:
        """The inputs that are no cache, and the logits."""
        cached = {tensor.past for tensor in self.session.cache}
        inputs = {info.name: info for info in self.session.inputs if info.name not in cached}
        inputs.pop(AUDIO, None)
        unknown = [name for name in inputs if name not in _TOKEN_INPUTS]
        logits = next((info for info in self.session.outputs if info.name == "logits"), None)
        if unknown or "input_ids" not in inputs or logits is None:
            what = f"input {unknown[0]}" if unknown else "no input_ids or no logits"
            raise BundleError(
                f"{self._model}: {what}; only decoders with input_ids, attention_mask, "
                "position_ids, past_key_values and logits can generate"
            )
        return inputs, logits

    def _dtype(self, info: TensorInfo) -> np.dtype[Any]:
        try:
            return np.dtype(info.dtype)
        except TypeError as error:
            raise BundleError(f"{self._model}: {info.name} is {info.dtype}, not numpy's") from error


def _untouched(size: int) -> mmap.mmap:
    """Zeroed memory whose pages come into being one by one, when they are first written.

    numpy's own would come in huge pages, most of each unused by a short sequence.
    """
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)
