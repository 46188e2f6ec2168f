"""The manifest ``edgetie.json``: the contents and the origin of a bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from edgetie.bundle.model_config import read_token_ids
from edgetie.bundle.names import ADAPTER_ENDING, DECODER, FORMAT, LAST_TOKEN_NODE, MANIFEST, MODEL
from edgetie.errors import BundleError
from edgetie.graph.external_data import check_external_data
from edgetie.graph.tensors import PAST, TensorInfo
from edgetie.ties.groups import TieGroup, Use

_LIMIT = 1 << 31  # sizes and tokens stay below


@dataclass
class Signature:
    """The inputs and outputs of a graph, and what a caller must know about them.

    The cache consists of the inputs ``past_key_values.{layer}.{part}``, ``(batch, ...)``. Keys and
    values have one symbolic axis with the length of the past. Recurrent states have fixed sizes.
    An empty cache is all zeros.

    Attributes:
        inputs: inputs of the graph, in order.
        outputs: outputs of the graph, in order.
        logits: ``last`` (logits are ``(batch, 1, vocabulary)``, those of the last token) or ``all``
            (``(batch, sequence, vocabulary)``).
        cache_in_place: whether keys and values can be bound as input and output in one buffer of
            fixed length (GroupQueryAttention's shared buffer).
        max_positions: longest sequence, or ``None`` if there is no limit.
        vocab_size: last dimension of the logits.
        eos_token_ids: tokens that end a generated text.
        start_token_ids: first tokens of an encoder-decoder model's decoder.
        audio_token_id: token that audio embeddings replace. A model with audio embeddings but
            without this token adds one embedding to each token.
        image_token_id: token that image embeddings replace.
        image_tokens: number of these tokens that a prompt has for an image, if the encoder reads
            the prompt.
        suppressed_token_ids: tokens that are never generated.
        begin_suppressed_token_ids: more tokens that are not generated first.
        language_token_ids: tokens of spoken languages by language code.
        padding: sides on which a decoder's prompts may be padded: ``left`` or ``both``.
    """

    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    logits: str = "last"
    cache_in_place: bool = False
    max_positions: int | None = None
    vocab_size: int = 0
    eos_token_ids: list[int] = field(default_factory=list)
    start_token_ids: list[int] = field(default_factory=list)
    audio_token_id: int | None = None
    image_token_id: int | None = None
    image_tokens: int | None = None
    suppressed_token_ids: list[int] = field(default_factory=list)
    begin_suppressed_token_ids: list[int] = field(default_factory=list)
    language_token_ids: dict[str, int] = field(default_factory=dict)
    padding: str = "both"

    @property
    def cache(self) -> list[TensorInfo]:
        """The inputs that form the cache."""
        return [value for value in self.inputs if value.name.startswith(f"{PAST}.")]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Signature:
        """Parse a signature in a manifest."""
        tensors = {k: [TensorInfo.from_dict(v) for v in data[k]] for k in ("inputs", "outputs")}
        return cls(**{**data, **tensors})


@dataclass
class Manifest:
    """The contents of ``edgetie.json``.

    Attributes:
        signature: of ``model.onnx``, or of ``decoder_model.onnx`` if the model has an encoder.
        encoder: signature of ``encoder_model.onnx``.
        weights_in_memory: what matrix products read: ``prepacked`` copies of the weights that ONNX
            Runtime makes at session start, so that only Gather reads the mapped file; ``mapped``,
            the file; or ``mixed``, the file for embedding tables and copies for other weights.
        compiled: the provider that the graphs were compiled for; empty if they were not.
        adapters: by name, the base, the largest rank and the number of layers of each LoRA adapter,
            and its logit error against torch, over the largest logit. Files are named after them.
        files: size and SHA-256 of every other file; empty for a bare ONNX file.
    """

    source: dict[str, Any]
    task: str
    precision: str
    signature: Signature
    ties: list[TieGroup]
    unique_parameters: int
    encoder: Signature | None = None
    weights_in_memory: str = "prepacked"
    compiled: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    fusion: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)
    adapters: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str, path: Path) -> Manifest:
        """Parse a manifest.

        Raises:
            BundleError: if it is not a valid manifest, of a newer format, or lists files outside.
        """
        try:
            return _parse(json.loads(text), path)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BundleError(
                f"{path}: not a valid manifest ({type(error).__name__}: {error}); export again"
            ) from error


def _parse(data: Any, path: Path) -> Manifest:
    """Make a manifest of JSON data and check every value in it."""
    if data["format"] > FORMAT:
        raise BundleError(
            f"{path}: written by a newer edgetie (format {data['format']}); update edgetie"
        )
    if "layout" in data:  # the name until format 2
        layout = data.pop("layout")
        data["weights_in_memory"] = "prepacked" if layout == "packed" else layout
        data["format"] = FORMAT
    if "suppressed_token_ids" not in data["signature"]:  # of an older edgetie
        has_encoder = data.get("encoder") is not None
        token_ids = read_token_ids(path.parent, has_encoder=has_encoder)
        stated = {k: v for k, v in data["signature"].items() if v or k not in token_ids}
        data["signature"] = token_ids | stated
    _require_fields(Manifest, data)
    for name in ("signature", "encoder"):
        if data.get(name) is not None:
            _require_fields(Signature, data[name])
            data[name] = Signature.from_dict(data[name])
            _require_sizes(asdict(data[name]))
    for group in data["ties"]:
        _require_fields(TieGroup, group)
        for use in group["uses"]:
            _require_fields(Use, use)
    data["ties"] = [TieGroup.from_dict(group) for group in data["ties"]]
    manifest = Manifest(**data)
    require_types(manifest)
    if (MODEL if manifest.encoder is None else DECODER) not in manifest.files:
        raise ValueError("its files lack the model")
    for name in manifest.adapters:
        if f"{name}{ADAPTER_ENDING}" not in manifest.files:
            raise ValueError(f"its files lack adapter {name!r}")
    for name, entry in manifest.files.items():
        if Path(name).name != name:
            raise ValueError(f"file {name!r} is outside the bundle")
        if not (isinstance(entry["bytes"], int) and isinstance(entry["sha256"], str)):
            raise TypeError(f"file {name!r} needs bytes and sha256")
    return manifest


def bare_manifest(model_path: Path) -> Manifest:
    """Make a manifest for an ONNX file without one, from its graph and without reading weights.

    Its task is that of a decoder, ``causal-lm``. Its precision is empty, and so are source, ties
    and files.

    Raises:
        BundleError: if the file is not an ONNX model, or its external data is missing or truncated.
    """
    import onnx_ir as ir

    graph = check_external_data(model_path).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs, outputs = (
        describe_tensors(ir.from_proto(value) for value in values)
        for values in ((v for v in graph.input if v.name not in weights), graph.output)
    )
    last = any(node.name == LAST_TOKEN_NODE for node in graph.node)
    token_ids = read_token_ids(model_path.parent)
    signature = Signature(inputs, outputs, logits="last" if last else "all", **token_ids)
    return Manifest(
        {}, "causal-lm", "", signature, ties=[], unique_parameters=0, weights_in_memory=""
    )


def onnx_manifest(
    bare: Manifest, name: str, *, task: str, vocab_size: int, parameters: int
) -> Manifest:
    """Complete the manifest of a bare ONNX file, to be written with a bundle.

    Args:
        bare: see :func:`bare_manifest`.
        name: of the file or directory that the bundle is made of.
        task: of the model.
        vocab_size: last dimension of the logits; 0 if it is unknown.
        parameters: number of float values, copies left out.
    """
    return replace(
        bare,
        source={"kind": "onnx", "name": name, "architecture": None},
        task=task,
        signature=replace(bare.signature, vocab_size=vocab_size),
        unique_parameters=parameters,
        versions={package: version(package) for package in ("edgetie", "onnxruntime", "onnx")},
    )


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``edgetie.json`` with the size and SHA-256 of every other file in ``directory``."""
    manifest.files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(directory.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    (directory / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_tensors(values: Any) -> list[TensorInfo]:
    """Describe inputs or outputs of an onnx-ir graph, without inputs that have a default."""
    return [
        TensorInfo(
            value.name,
            value.dtype.name.lower() if value.dtype is not None else "",
            tuple(d if isinstance(d, int) else str(d.value) for d in value.shape or ()),
        )
        for value in values
        if not (value.is_initializer() and value.is_graph_input())
    ]


def require_types(record: Any) -> None:
    """Check every field of a dataclass instance against its annotation.

    Raises:
        TypeError: naming the first field of another type.
    """
    for name, hint in get_type_hints(type(record)).items():
        if not _fits(getattr(record, name), hint):
            raise TypeError(f"{name} is not {getattr(hint, '__name__', hint)}")


def _require_fields(kind: type, data: Mapping[str, Any]) -> None:
    """Raise a ValueError for a field that a dataclass does not have."""
    if unknown := data.keys() - {each.name for each in fields(kind)}:
        raise ValueError(f"{kind.__name__} has no field {min(unknown)!r}")


def _require_sizes(data: Any) -> None:
    """Raise a ValueError for a number in a signature that is not a size or a token."""
    if isinstance(data, dict | list | tuple):
        for value in data.values() if isinstance(data, dict) else data:
            _require_sizes(value)
    elif isinstance(data, int) and not -1 <= data < _LIMIT:
        raise ValueError(f"{data} is neither a size nor a token")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in inner)
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, hint):
        require_types(value)
        return True
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, inner[0]) for item in value)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    return isinstance(value, hint)
