"""Load GGUF files: the model in fp32, dequantized by transformers, and its quantized weights."""

import contextlib
import functools
import gc
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgetie.errors import SourceError, summarize
from edgetie.sources.checkpoint import require_weights
from edgetie.sources.extras import quiet_transformers, save_tokenizer
from edgetie.sources.patching import set_attributes
from edgetie.sources.quantized.gguf_tensors import read_quantized_tensors
from edgetie.sources.source import Source

_ROTARY = "rope_"  # prefix of tensors that _scale_rotary reads
_STRING = 8  # type of a value in the header
_CHUNK_BYTES = 1 << 17  # decoded at a time: intermediate results stay in the processor's cache

Array = np.ndarray[Any, Any]


@dataclass
class _Read:
    """What transformers read of a file.

    Attributes:
        unread: names of tensors that it left out.
        names: of parameters, by the names of tensors.
        processor: what it changed tensors with after dequantizing them.
    """

    unread: set[str] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)
    processor: Any = None


def load_gguf(path: Path, *, dequantize: bool = False) -> Source:
    """Load a GGUF file: an fp32 model, and its quantized weights unless ``dequantize``.

    Raises:
        SourceError: if the file is damaged, transformers does not read its architecture or all of
            its weights, or a quantized weight cannot be kept as it is.
    """
    import gguf
    import torch
    from transformers import AutoModelForCausalLM

    require_gguf(path)
    try:
        tokenizer = _tokenizer(path)  # before the weights: it needs much memory for a while
        with _adapted_loader() as read:
            module, loading = AutoModelForCausalLM.from_pretrained(
                str(path.parent),
                gguf_file=path.name,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # reported by require_weights
                output_loading_info=True,
            )
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(
            f"{path}: cannot be loaded ({summarize(error)}); if it is cut short, download it again"
        ) from error
    require_weights(str(path), loading)
    needed = sorted(
        name for name in read.unread if name.startswith("blk.") or name.endswith(".bias")
    )
    if needed:
        raise SourceError(
            f"{path}: has {len(needed)} weights of layers and biases that transformers does not "
            f"read ({needed[0]}, ...); export the model that the file was made from"
        )
    _scale_rotary(path, module.eval())
    reader = _reader(gguf.GGUFReader, str(path))
    quantized = {}
    if not dequantize:
        quantized = read_quantized_tensors(path, reader.tensors, module, read.names, read.processor)
    if hasattr(mmap, "MADV_DONTNEED"):  # the pages are not needed any more
        reader.data._mmap.madvise(mmap.MADV_DONTNEED)
    config = module.config
    if hasattr(config, "quantization_config"):  # the weights are dequantized by now
        del config.quantization_config
    config.architectures = [type(module).__name__]

    def save_extras(target: Path) -> None:
        from transformers import GenerationConfig

        config.save_pretrained(target)
        end = config.eos_token_id
        end_tokens = {*end} if isinstance(end, list) else {end}
        if tokenizer is not None:
            end_tokens.add(tokenizer.eos_token_id)
            save_tokenizer(tokenizer, target)
        generation = GenerationConfig.from_model_config(config)
        generation.eos_token_id = sorted(end_tokens - {None})
        generation.save_pretrained(target)

    _reader.cache_clear()
    unused = sorted(read.unread)
    return Source(
        "gguf", path.stem, module, config, save_extras, unused=unused, quantized=quantized
    )


def require_gguf(path: Path) -> None:
    """Raise :class:`SourceError` if a file does not begin as a GGUF file."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise SourceError(f"{path}: not a GGUF file")


def _tokenizer(path: Path) -> Any:
    """The file's tokenizer; ``None`` if there is none."""
    import gguf
    from transformers import AutoTokenizer

    if "tokenizer.ggml.model" not in _reader(gguf.GGUFReader, str(path)).fields:
        return None
    try:
        with _adapted_loader():
            return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except Exception as error:
        raise SourceError(f"{path}: its tokenizer cannot be read ({summarize(error)})") from error


def _scale_rotary(path: Path, module: Any) -> None:
    """Divide rotary frequencies as the file says, which transformers ignores."""
    import gguf
    import torch

    reader = _reader(gguf.GGUFReader, str(path))
    architecture = reader.fields["general.architecture"].contents()

    def setting(name: str, default: Any) -> Any:
        field = reader.fields.get(f"{architecture}.rope.{name}")
        return default if field is None else field.contents()

    parameters = getattr(module.config, "rope_parameters", None) or {}
    if parameters.get("rope_type", "default") != "default":
        return  # transformers did read it
    kind = setting("scaling.type", "linear")  # the default if only a factor is set
    factor = float(setting("scaling.factor", setting("scale_linear", 1.0))) or 1.0
    factor = 1.0 if kind == "none" else factor
    tensors = {tensor.name: tensor for tensor in reader.tensors if tensor.name.startswith(_ROTARY)}
    divisors = tensors.pop("rope_freqs.weight", None)
    rotaries = [part for part in module.modules() if hasattr(part, "inv_freq")]
    if divisors is None and not tensors and factor == 1:
        return
    if tensors or (kind != "linear" and factor != 1) or not rotaries:
        what = next(iter(tensors), f"scaling of type {kind}")
        raise SourceError(
            f"{path}: its rotary embedding ({what}) is not read by transformers; export the model "
            "that the file was made from"
        )
    divisor = factor if divisors is None else torch.tensor(divisors.data.copy()).float() * factor
    for rotary in rotaries:
        rotary.inv_freq = rotary.inv_freq / divisor
        if hasattr(rotary, "original_inv_freq"):
            rotary.original_inv_freq = rotary.inv_freq


@functools.lru_cache(maxsize=1)
def _reader(reader_class: Any, path: str) -> Any:
    """Read the header; values are views of plain arrays, of which a vocabulary has a million."""

    class Reader(reader_class):  # type: ignore[misc]
        def _get(
            self, offset: int, dtype: Any, count: int = 1, override_order: str | None = None
        ) -> Array:
            ordered = np.dtype(dtype).newbyteorder(override_order or self.byte_order)
            if not count:
                return np.empty(0, ordered)
            return np.frombuffer(self.data, ordered, int(count), int(offset))

    enabled = gc.isenabled()
    gc.disable()  # it would look through all arrays again and again
    try:
        return Reader(path)
    finally:
        if enabled:
            gc.enable()


def _parse_value(parse: Callable[[Any, Any], Any], value: Any, types: Any) -> Any:
    """Convert a value of the header; texts at once instead of byte by byte."""
    kind = types[-1] if isinstance(types, list) else types
    return bytes(value).decode() if kind == _STRING else parse(value, types)


def _decode_rows(
    decode: Callable[[Array], Array], array: Array, dtype: Any, shape: tuple[int, ...]
) -> Array:
    """Decode blocks ``(..., bytes)`` into an array of a shape, a chunk of rows at a time."""
    rows = array.reshape(-1, array.shape[-1])
    result = np.empty(shape, dtype)
    decoded_rows = result.reshape(len(rows), -1)
    step = max(1, _CHUNK_BYTES // rows.shape[1])
    for start in range(0, len(rows), step):
        decoded_rows[start : start + step] = decode(rows[start : start + step])
    return result


def _copy_if_shared(array: Array) -> Array:
    """Copy an array, such as a view of the file, unless nothing else has its memory."""
    return array if array.flags.owndata and array.flags.c_contiguous else np.copy(array)


@contextlib.contextmanager
def _adapted_loader() -> Iterator[_Read]:
    """Adapt how transformers reads GGUF files; yields what it does.

    It parses the header for each of configuration, weights and tokenizer, and builds the map of
    names for every submodule, most of the time of loading a small model: here both happen once. It
    also copies every decoded tensor, among them the largest.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loader

    reader_class, weights_map = gguf.GGUFReader, loader.get_gguf_hf_weights_map
    read = _Read()

    class Names(dict[str, str]):
        def __contains__(self, name: object) -> bool:
            is_read = super().__contains__(name)
            if not is_read and isinstance(name, str) and not name.startswith(_ROTARY):
                read.unread.add(name)
            return is_read

    def map_names(model: Any, processor: Any, *arguments: Any, **options: Any) -> dict[str, str]:
        read.names, read.processor = weights_map(model, processor, *arguments, **options), processor
        return Names(read.names)

    replacements = [
        (gguf, "GGUFReader", lambda path, *_: _reader(reader_class, str(path))),
        (
            gguf.quants,
            "_apply_over_grouped_rows",
            lambda func, arr, otype, oshape: _decode_rows(func, arr, otype, oshape),
        ),
        (loader, "np", SimpleNamespace(**vars(np) | {"copy": _copy_if_shared})),
        (loader, "_gguf_parse_value", functools.partial(_parse_value, loader._gguf_parse_value)),
        (gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
        (loader, "get_gguf_hf_weights_map", map_names),
        (loader, "tqdm", functools.partial(loader.tqdm, disable=True)),
    ]
    with set_attributes(replacements), quiet_transformers():
        yield read
