"""Decoding with buffers that are bound to the device once, the cache included."""

import math
import mmap
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgetie.bundle.names import AUDIO, AUDIO_LM, ENCODER_MASK, IMAGE, IMAGE_LM, LAST_TOKENS
from edgetie.errors import BundleError, EdgetieError
from edgetie.graph.tensors import CacheTensor, TensorInfo
from edgetie.runtime.images.embeddings import ImageEmbeddings
from edgetie.runtime.memory import MappedFiles, release_heap
from edgetie.runtime.session import Session, onnxruntime_errors

_TOKEN_INPUTS = ("input_ids", "attention_mask", "position_ids")
_STEPS_BETWEEN_RELEASES = 2
_CHUNK = 512
"""Tokens of a prompt that one run reads. Fewer are slower, more take more memory."""


class Decoder:
    """A batch of sequences that a model continues, token by token.

    If the model allows it, past and present keys and values share one buffer of the full length.
    Other models return a new cache, which becomes the next step's input without a copy. Models
    without a cache read the whole sequence again.

    Attributes:
        session: the opened model.
        batch: number of sequences.
        max_length: longest sequence there is room for.
        length: tokens of each sequence so far, padding included.
        adapter: name of the session's LoRA adapter when this was made; ``None`` for the base alone.
    """

    _tasks: tuple[str, ...] = ("causal-lm", AUDIO_LM, IMAGE_LM)

    def __init__(self, session: Session, batch: int, max_length: int) -> None:
        """Allocate buffers; memory is used only as far as sequences grow.

        Raises:
            BundleError: if the model is not a decoder that can be run token by token.
            EdgetieError: if ``max_length`` is more than the model accepts.
        """
        if session.bundle.task not in self._tasks:
            raise BundleError(
                f"{session.bundle.directory}: a bundle for {session.bundle.task}; only decoders "
                "(causal-lm) generate token by token"
            )
        self.session, self.batch, self.max_length, self.length = session, batch, max_length, 0
        self._path = session.bundle.model_path
        inputs, logits = self._token_inputs()
        signature = session.bundle.manifest.signature
        limit = signature.max_positions
        if limit is not None and max_length > limit:
            raise EdgetieError(f"{self._path}: accepts {limit} tokens, not {max_length}")
        if len(logits.shape) != 3:
            raise BundleError(
                f"{self._path}: its logits have {len(logits.shape)} axes, not batch, tokens and "
                "vocabulary; export it again"
            )
        self._left_padding_only = signature.padding == "left"
        self._mask = np.zeros((batch, max_length), np.int64)
        self._ids = None if session.cache else np.zeros((batch, max_length), np.int64)
        self._inputs = {
            name: np.empty(batch * max_length * 3 ** (len(info.shape) - 2), self._dtype(info))
            for name, info in inputs.items()
        }
        self._audio: NDArray[np.float32] | None = None
        self._images: ImageEmbeddings | None = None
        self._bound_images: list[NDArray[Any]] = []
        self._has_three_positions = len(getattr(inputs.get("position_ids"), "shape", ())) == 3
        self._positions_after_images = 0
        self._bound_shapes: dict[str, tuple[int, ...]] = {}
        self._last_tokens: Any = None
        self._steps = 0
        self._touched_files: MappedFiles | None = None
        self._logits_dtype = self._dtype(logits)
        self._vocabulary = logits.shape[-1]
        self._binding = session.ort.io_binding()
        self._in_place: dict[str, NDArray[Any]] = {}  # keys and values on the CPU
        self._past: dict[str, Any] = {}  # the others
        self.adapter, self._adapter_tensors = session.adapter, session.adapter_tensors
        for name, array in self._adapter_tensors.items():
            value = ort.OrtValue.ortvalue_from_numpy(array, session.device, 0)  # reads it on a CPU
            self._binding.bind_ortvalue_input(name, value)
        # a long prompt needs far more memory than a step; the arena gives the difference back
        self._prefill_options = ort.RunOptions()
        self._prefill_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        in_place = [t for t in session.cache if session.cache_in_place and t.grows]
        for tensor in in_place:
            self._bind_in_place(tensor)
        self._returned = [tensor for tensor in session.cache if tensor not in in_place]
        self.reset()

    def reset(self) -> None:
        """Forget the sequences; the buffers stay."""
        self.length = self._positions_after_images = 0
        for tensor in self._returned:
            zeros = np.zeros(tensor.shape(self.batch), self.session.cache_dtype)
            empty = ort.OrtValue.ortvalue_from_numpy(zeros, self.session.device, 0)
            self._bind_past(tensor, empty)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return keys, values and recurrent states of the tokens so far, by the inputs' names.

        The next token may change them. For a session on the CPU.
        """
        arrays = {name: value.numpy() for name, value in self._past.items()} | self._in_place
        return {t.past: t.first(arrays[t.past], self.length) for t in self.session.cache}

    def resume(self, state: Mapping[str, NDArray[Any]], length: int) -> None:
        """Continue one sequence after ``length`` tokens without padding, as :meth:`state` gave it.

        A ``state`` of more tokens gives the first ones, unless the model has recurrent states.
        """
        self.reset()
        for tensor in self.session.cache:
            values = tensor.first(state[tensor.past], length)
            if tensor.past in self._in_place:
                tensor.first(self._in_place[tensor.past], length)[...] = values
            else:
                values = np.ascontiguousarray(values)
                device = self.session.device
                self._bind_past(tensor, ort.OrtValue.ortvalue_from_numpy(values, device, 0))
        self._mask[:, :length] = 1
        self.length = length

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens of one sequence.

        All are forgotten if runs return a cache or a state, or images gave tokens their positions.
        """
        if length < self.length and (self._returned or self._positions_after_images):
            self.reset()
        self.length = min(length, self.length)

    def prefill(
        self,
        prompt: NDArray[Any],
        attention_mask: NDArray[np.int64] | None = None,
        audio_embeddings: NDArray[np.float32] | None = None,
        image_embeddings: ImageEmbeddings | None = None,
    ) -> NDArray[np.float32]:
        """Append tokens to every sequence, padded on either side.

        On the CPU, a long text for a single sequence is read in parts, so that its activations take
        little memory, unless every part would copy a cache that grows.

        Args:
            prompt: token ids ``(batch, count)``.
            attention_mask: ``(batch, count)``, 0 for padding; ``None`` if there is none.
            audio_embeddings: one for each audio token, or one for every token to come
                (:func:`edgetie.runtime.audio.embeddings.embed_audio`).
            image_embeddings: of the prompt's image tokens, in order
                (:func:`edgetie.runtime.images.embeddings.embed_images`).

        Returns:
            Logits ``(batch, vocabulary)`` of the next token.

        Raises:
            EdgetieError: if ``max_length`` would be exceeded, a sequence is only padding, the model
                does not accept the padding, or several tokens of sequences that have begun.
            BundleError: if ONNX Runtime fails on the model.
        """
        mask = np.ones_like(prompt) if attention_mask is None else attention_mask
        if "attention_mask" not in self._inputs and not mask.all():
            raise EdgetieError(f"{self._path}: has no attention_mask, so it accepts no padding")
        appends = self.length > 0 and prompt.shape[1] > 1
        if appends and self.batch > 1 and self.session.cache_in_place:
            raise EdgetieError(
                f"{self._path}: accepts several tokens of several sequences only as a first "
                "prompt; go on with step"
            )
        empty = np.flatnonzero(~mask.any(axis=1))
        if len(empty):
            raise EdgetieError(f"sequence {empty[0]} has no token; give at least one")
        if self._left_padding_only and (np.diff(mask, axis=1) < 0).any():
            raise EdgetieError(f"{self._path}: accepts padding on the left only")
        self._steps = 0
        self._audio, self._images = audio_embeddings, image_embeddings
        self._require_places(prompt)
        count = prompt.shape[1]
        self._require_room(count)
        copies = self._ids is not None or any(tensor.grows for tensor in self._returned)
        is_text = audio_embeddings is None and image_embeddings is None
        is_one = self.batch == 1 and self.session.device == "cpu"
        if is_one and is_text and not copies and mask.all():
            whole = range(0, count - _CHUNK, _CHUNK)
            for start in whole:
                self._forward(prompt[:, start : start + _CHUNK], 1, self._prefill_options)
            prompt, mask = (values[:, len(whole) * _CHUNK :] for values in (prompt, mask))
        return self._forward(prompt, mask, self._prefill_options)

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token, ``tokens[b]``, to every sequence; otherwise as :meth:`prefill`."""
        self._release_pages()
        return self._forward(tokens[:, None], 1, None)

    def verify(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append the tokens ``(count,)`` of one sequence; only of a session that speculates.

        To reject tokens, set :attr:`length` back.

        Returns:
            Logits ``(count, vocabulary)``, of the token after each.
        """
        self._release_pages()
        self._forward(tokens[None], 1, None, len(tokens))
        logits: NDArray[np.float32] = self._logits[0].astype(np.float32, copy=False)
        return logits

    def _release_pages(self) -> None:
        """Release what only the prompt needed, and embeddings' pages from time to time."""
        files = self.session.embedding_files
        if self._steps == 0:  # here, not in prefill: the first token is not delayed
            if files is not None:
                self._touched_files = files.touched()
                files.release()  # a prompt reads far more pages than its embeddings need
            release_heap()
        elif self._touched_files is not None and self._steps % _STEPS_BETWEEN_RELEASES == 0:
            self._touched_files.release()  # the kernel reads 64 KB around each embedding
        self._steps += 1

    def _require_room(self, count: int) -> None:
        if (end := self.length + count) > self.max_length:
            raise EdgetieError(
                f"{end} tokens exceed max_length {self.max_length}; make the Decoder longer"
            )

    def _forward(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64] | int, options: Any, count: int = 1
    ) -> NDArray[np.float32]:
        self._require_room(ids.shape[1])
        start, end = self.length, self.length + ids.shape[1]
        self._mask[:, start:end] = mask
        if self._ids is not None:
            self._ids[:, start:end] = ids
            start, ids = 0, self._ids[:, :end]
        self._bind_tokens("input_ids", ids)
        self._bind_audio(start, end)
        self._bind_images()
        if "attention_mask" in self._inputs:
            self._bind_tokens("attention_mask", self._mask[:, :end])
        if "position_ids" in self._inputs:
            self._bind_tokens("position_ids", self._positions(ids, start, end))
        self._bind_logits(count if self.session.logits == "last" else end - start)
        self._run(options)
        self.length = end
        read = self._mask[:, start:end]
        if self._logits.shape[1] == 1:
            last = np.zeros(self.batch, np.int64)
        elif self.session.left_aligned_logits:
            last = read.sum(axis=1) - 1
        else:
            last = end - start - 1 - read[:, ::-1].argmax(axis=1)
        return self._logits[np.arange(self.batch), last].astype(np.float32, copy=False)

    def _require_places(self, prompt: NDArray[Any]) -> None:
        """Refuse a prompt with another number of image tokens than there are embeddings."""
        token = self.session.bundle.manifest.signature.image_token_id
        if token is None:
            return
        places = int((prompt == token).sum())
        count = 0 if self._images is None else self._images.count
        if places != count:
            raise EdgetieError(
                f"{self._path}: the prompt has {places} places for image embeddings (token "
                f"{token}), and there are {count}; give an image for each place"
            )

    def _positions(self, ids: NDArray[Any], start: int, end: int) -> NDArray[np.int64]:
        """Positions of tokens ``start`` to ``end``: ``(batch, count)``, or of three axes."""
        positions: NDArray[np.int64] = self._mask[:, :end].cumsum(axis=1)[:, start:] - 1
        positions = np.maximum(positions, 0)
        if not self._has_three_positions:
            return positions
        token = self.session.bundle.manifest.signature.image_token_id
        images = None if self._steps and self._ids is None else self._images
        if images is None or token is None or not len(images.grids):
            return np.repeat(positions[None] + self._positions_after_images, 3, axis=0)
        first = int(positions[0, 0]) + self._positions_after_images
        located = images.positions(ids[0], token) + first
        if self._ids is None:
            self._positions_after_images += int(located.max() - first + 1 - ids.shape[1])
        return located[:, None]

    def _bind_images(self) -> None:
        """Bind the image embeddings of the prompt; a step has none."""
        self._bound_images = []
        for info in self.session.inputs:
            if not info.name.startswith(IMAGE):
                continue
            rows = np.zeros((0, int(info.shape[-1])), self._dtype(info))
            if self._images is not None and not (self._steps and self._ids is None):
                rows = np.ascontiguousarray(self._images.rows[info.name])
            self._bound_images.append(rows)  # the binding reads it
            self._binding.bind_cpu_input(info.name, rows)

    def _bind_tokens(self, name: str, values: NDArray[np.int64]) -> None:
        """Copy ``values`` into an input's buffer; bind it again if its shape has changed."""
        buffer = self._inputs[name][: values.size].reshape(values.shape)
        buffer[...] = values
        # the CPU reads the buffer itself; for another device, binding copies it there
        if self.session.device != "cpu" or self._bound_shapes.get(name) != values.shape:
            self._binding.bind_cpu_input(name, buffer)
            self._bound_shapes[name] = values.shape

    def _bind_audio(self, start: int, end: int) -> None:
        """Bind the audio embeddings of tokens ``start`` to ``end``, if the model has any."""
        info = next((info for info in self.session.inputs if info.name == AUDIO), None)
        audio = self._audio
        if audio is None:
            if info is None:
                return
            sizes = (0,) if len(info.shape) == 2 else (self.batch, end - start)
            audio = np.zeros((*sizes, int(info.shape[-1])), self._dtype(info))
        elif audio.ndim == 3:  # one embedding for each token
            audio = audio[:, start:end]
            if audio.shape[1] < end - start:
                raise EdgetieError(f"token {end} comes after the end of the audio")
        elif self._steps and self._ids is None:
            audio = audio[:0]  # audio tokens are in the prompt only
        self._bound_audio = np.ascontiguousarray(audio)  # the binding reads it
        self._binding.bind_cpu_input(AUDIO, self._bound_audio)

    def _bind_logits(self, tokens: int) -> None:
        if not isinstance(self._vocabulary, int):  # known after the first run
            self._binding.bind_output("logits", "cpu")
            return
        shape = (self.batch, tokens, self._vocabulary)
        if self._bound_shapes.get("logits") != shape:
            self._bound_shapes["logits"] = shape
            self._logits = np.empty(shape, self._logits_dtype)
            if self.session.speculates:
                relative = np.arange(1 - tokens, 1)[:, None]
                # kept, as the binding reads the array
                self._last_tokens = ort.OrtValue.ortvalue_from_numpy(relative)
                self._binding.bind_ortvalue_input(LAST_TOKENS, self._last_tokens)
            self._binding.bind_output(
                "logits", "cpu", 0, self._logits_dtype, shape, self._logits.ctypes.data
            )

    def _run(self, options: Any) -> None:
        for tensor in self._returned:
            self._binding.bind_output(tensor.present, self.session.device)
        with onnxruntime_errors(self._path):
            self.session.ort.run_with_iobinding(self._binding, options)
        if self._returned or not isinstance(self._vocabulary, int):
            in_place = len(self.session.cache) - len(self._returned)  # bound first
            logits, *presents = self._binding.get_outputs()[in_place:]
            for tensor, present in zip(self._returned, presents, strict=True):
                self._bind_past(tensor, present)
            if not isinstance(self._vocabulary, int):
                self._logits = logits.numpy()
                self._vocabulary = self._logits.shape[-1]

    def _bind_past(self, tensor: CacheTensor, value: Any) -> None:
        self._past[tensor.past] = value
        self._binding.bind_ortvalue_input(tensor.past, value)

    def _bind_in_place(self, tensor: CacheTensor) -> None:
        shape = tensor.shape(self.batch, self.max_length)
        dtype = np.dtype(self.session.cache_dtype)
        if self.session.device == "cpu":
            # pages become resident one by one, when first written; numpy's huge pages would not
            private = getattr(mmap, "MAP_PRIVATE", None)  # absent on Windows
            flags = {} if private is None else {"flags": private | mmap.MAP_ANONYMOUS}
            memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, **flags)
            self._in_place[tensor.past] = buffer = np.frombuffer(memory, dtype).reshape(shape)
            pointer = buffer.ctypes.data
            self._binding.bind_input(tensor.past, "cpu", 0, dtype, shape, pointer)
            self._binding.bind_output(tensor.present, "cpu", 0, dtype, shape, pointer)
        else:
            value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, self.session.device, 0)
            self._binding.bind_ortvalue_input(tensor.past, value)
            self._binding.bind_ortvalue_output(tensor.present, value)

    def _token_inputs(self) -> tuple[dict[str, TensorInfo], TensorInfo]:
        """The inputs of one value per token, and the logits."""
        caches = self.session.cache + self.session.cross
        others = {AUDIO, ENCODER_MASK, *(tensor.past for tensor in caches)}
        inputs = {
            info.name: info
            for info in self.session.inputs
            if info.name not in others and not info.name.startswith(IMAGE)
        }
        unknown = [name for name in inputs if name not in _TOKEN_INPUTS]
        logits = next((info for info in self.session.outputs if info.name == "logits"), None)
        if unknown or "input_ids" not in inputs or logits is None:
            what = f"input {unknown[0]}" if unknown else "no input_ids or no logits"
            raise BundleError(
                f"{self._path}: {what}; only decoders with input_ids, attention_mask, "
                "position_ids, past_key_values and logits can generate"
            )
        return inputs, logits

    def _dtype(self, info: TensorInfo) -> np.dtype[Any]:
        try:
            return np.dtype(info.dtype)
        except TypeError as error:
            raise BundleError(f"{self._path}: {info.name} is {info.dtype}, not numpy's") from error
