"""GGUF files, dequantised to fp32 by transformers and gguf."""

from __future__ import annotations

import contextlib
import functools
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgetie.errors import SourceError, summarize
from edgetie.sources.pretrained import quiet_transformers, require_weights, save_tokenizer
from edgetie.sources.source import Source

_ROTARY = "rope_"
"""Tables of rotary embeddings begin so; they are read here."""


def load_gguf(path: Path) -> Source:
    """Load a GGUF file as an fp32 model.

    Raises:
        SourceError: if the file is damaged or of an architecture transformers does not read.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise SourceError(f"{path}: not a GGUF file")
    try:
        with _no_bars(), _read_once(), _noting_unread() as unread:
            module, loading = AutoModelForCausalLM.from_pretrained(
                str(path.parent),
                gguf_file=path.name,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # reported by require_weights
                output_loading_info=True,
            )
    except Exception as error:
        raise SourceError(
            f"{path}: cannot be loaded ({summarize(error)}); if it is cut short, download it again"
        ) from error
    require_weights(str(path), loading)
    lost = sorted(name for name in unread if name.startswith("blk.") or name.endswith(".bias"))
    if lost:
        raise SourceError(
            f"{path}: holds {len(lost)} weights of layers and biases that transformers does not "
            f"read ({lost[0]}, ...); export the model that the file was made from"
        )
    _scale_rotary(path, module.eval())
    tokenizer = _tokenizer(path)
    _drop_pages(path)
    config = module.config
    if hasattr(config, "quantization_config"):  # the weights are dequantised by now
        del config.quantization_config
    config.architectures = [type(module).__name__]

    def save_extras(target: Path) -> None:
        from transformers import GenerationConfig

        config.save_pretrained(target)
        named = config.eos_token_id
        ends = {*named} if isinstance(named, list) else {named}
        if tokenizer is not None:
            ends.add(tokenizer.eos_token_id)
            save_tokenizer(tokenizer, target)
        generation = GenerationConfig.from_model_config(config)
        generation.eos_token_id = sorted(ends - {None})
        generation.save_pretrained(target)

    _reader.cache_clear()
    return Source("gguf", path.stem, module, config, save_extras, unused=sorted(unread))


def _tokenizer(path: Path) -> Any:
    """The file's tokenizer; ``None`` if there is none.

    Raises:
        SourceError: if transformers does not read it.
    """
    import gguf
    from transformers import AutoTokenizer

    if "tokenizer.ggml.model" not in _reader(gguf.GGUFReader, str(path)).fields:
        return None
    try:
        with quiet_transformers(), _read_once():
            return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except Exception as error:
        raise SourceError(f"{path}: its tokenizer cannot be read ({summarize(error)})") from error


def _scale_rotary(path: Path, module: Any) -> None:
    """Slow rotary embeddings down as the file says: transformers leaves that out.

    Raises:
        SourceError: if that is more than a factor for each frequency.
    """
    import gguf
    import torch

    reader = _reader(gguf.GGUFReader, str(path))
    architecture = reader.fields["general.architecture"].contents()

    def field(name: str, default: Any) -> Any:
        found = reader.fields.get(f"{architecture}.rope.{name}")
        return default if found is None else found.contents()

    known = getattr(module.config, "rope_parameters", None) or {}
    if known.get("rope_type", "default") != "default":
        return  # read after all
    kind = field("scaling.type", "linear")  # where only a factor is told
    factor = float(field("scaling.factor", field("scale_linear", 1.0))) or 1.0
    if kind == "none":
        factor = 1.0
    tables = {tensor.name: tensor for tensor in reader.tensors if tensor.name.startswith(_ROTARY)}
    single = tables.pop("rope_freqs.weight", None)
    rotaries = [part for part in module.modules() if hasattr(part, "inv_freq")]
    if single is None and not tables and factor == 1:
        return
    if tables or (kind != "linear" and factor != 1) or not rotaries:
        what = next(iter(tables), f"scaling of type {kind}")
        raise SourceError(
            f"{path}: its rotary embedding ({what}) is not read by transformers; export the model "
            "that the file was made from"
        )
    divisor = factor if single is None else torch.tensor(single.data.copy()).float() * factor
    for rotary in rotaries:
        rotary.inv_freq = rotary.inv_freq / divisor
        if hasattr(rotary, "original_inv_freq"):
            rotary.original_inv_freq = rotary.inv_freq


@functools.lru_cache(maxsize=1)
def _reader(original: Any, path: str) -> Any:
    return original(path)


def _drop_pages(path: Path) -> None:
    """Give back the memory of the file's pages: its weights are dequantised by now."""
    import gguf

    if hasattr(mmap, "MADV_DONTNEED"):
        _reader(gguf.GGUFReader, str(path)).data._mmap.madvise(mmap.MADV_DONTNEED)


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """Let transformers parse a file's header and build its name map once, not per use.

    It does both anew for the configuration, the weights and the tokenizer, and the map for every
    submodule: most of the time of loading a small model.
    """
    import gguf

    reader, name_map = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader = lambda path, *_: _reader(reader, str(path))
    gguf.get_tensor_name_map = functools.cache(name_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, name_map


@contextlib.contextmanager
def _noting_unread() -> Iterator[set[str]]:
    """Note the tensors for which transformers, while it loads a file, knows no weight: it leaves
    them out without a word.
    """
    from transformers import modeling_gguf_pytorch_utils as loader

    unread: set[str] = set()

    class Names(dict[str, str]):
        def __contains__(self, name: object) -> bool:
            known = super().__contains__(name)
            if not known and isinstance(name, str) and not name.startswith(_ROTARY):
                unread.add(name)
            return known

    find = loader.get_gguf_hf_weights_map
    loader.get_gguf_hf_weights_map = lambda *args, **kwargs: Names(find(*args, **kwargs))
    try:
        yield unread
    finally:
        loader.get_gguf_hf_weights_map = find


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers' own progress bars off the terminal, that of GGUF files too."""
    from transformers import modeling_gguf_pytorch_utils as loader

    bar = loader.tqdm
    loader.tqdm = functools.partial(bar, disable=True)
    try:
        with quiet_transformers():
            yield
    finally:
        loader.tqdm = bar
