"""Bundles: the directory that ``export`` writes and everything else reads.

A bundle holds ``model.onnx`` (or ``encoder_model.onnx`` and ``decoder_model.onnx``), one
external-data file ``model.onnx.data``, the configuration and tokenizer files, and the manifest
``edgetie.json``. It is written under a temporary name beside
its destination and renamed when complete, so a crash, a full disk or Ctrl-C leaves nothing
half-written and an older bundle intact.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgetie.data_files import check_external_data, external_data_files
from edgetie.errors import BundleError
from edgetie.schema import require_types
from edgetie.ties import TieGroup

MANIFEST = "edgetie.json"
MODEL = "model.onnx"
ENCODER = "encoder_model.onnx"
DECODER = "decoder_model.onnx"
DATA = "model.onnx.data"
PREFILL = "prefill_model.onnx"
"""Beside a decoder of fixed shapes, the graph that reads prompts; both share their weights."""
CONFIGURATIONS = ("generation_config.json", "config.json")
"""Where settings of a model are looked for, the first one first."""
PROCESSOR = "processor_config.json"
"""How a model that hears is asked about a sound."""
ENCODER_MASK = "encoder_attention_mask"
"""Input of a decoder whose encoder reads a mask."""
AUDIO = "audio_embeds"
"""Output of an encoder whose rows take the places of tokens: input of the decoder beside it."""
FEATURES_MASK = "input_features_mask"
"""Input of such an encoder, 0 where features are padding."""
FORMAT = 1
SPEECH = "speech-seq2seq"
"""The task of an encoder-decoder model that hears."""
AUDIO_LM = "audio-lm"
"""The task of a decoder of tokens with an encoder of sound beside it."""
LAST_TOKEN_NODE = "edgetie.last_token"
"""Name of the GatherND node that keeps each row's last token; without it logits are ``all``."""


@dataclass
class Signature:
    """What goes into and comes out of the model, and what its cache looks like.

    The cache are the inputs ``past_key_values.{layer}.{part}``, ``(batch, ...)``. One axis of keys
    and values is symbolic, as long as the past; a state has sizes only. Zeros are the empty cache.

    Attributes:
        inputs: ``{name, dtype, shape}`` each; symbolic dimensions are strings.
        outputs: the same.
        logits: ``last`` (logits are ``(batch, 1, vocabulary)``, of each row's last token) or
            ``all`` (``(batch, sequence, vocabulary)``).
        cache_in_place: whether keys and values may be bound as input and output in one buffer of
            fixed length (GroupQueryAttention's shared buffer).
        max_positions: longest sequence the model takes, or ``None`` if nothing limits it.
        vocab_size: number of rows of the logits' last dimension.
        eos_token_ids: tokens that end a generated text.
        start_token_ids: tokens that a decoder behind an encoder starts with.
        audio_token_id: the token whose places the rows of a sound take; without one, where there
            are such rows, one is added to each token.
        padding: where prompts may be padded before a decoder continues them: ``left`` or ``both``.
    """

    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    logits: str = "last"
    cache_in_place: bool = False
    max_positions: int | None = None
    vocab_size: int = 0
    eos_token_ids: list[int] = field(default_factory=list)
    start_token_ids: list[int] = field(default_factory=list)
    audio_token_id: int | None = None
    padding: str = "both"


@dataclass
class Manifest:
    """The contents of ``edgetie.json``.

    ``signature`` is that of ``model.onnx``, or of ``decoder_model.onnx`` where there is an encoder
    with a signature of its own. ``layout`` says what products read: ``packed`` copies of the
    weights that ONNX Runtime makes when a session starts, so that the mapped file serves lookups
    only; ``mapped``, the file; or ``mixed``, the file for tables and copies for the others.
    """

    source: dict[str, Any]
    task: str
    precision: str
    signature: Signature
    ties: list[TieGroup]
    unique_parameters: int
    encoder: Signature | None = None
    layout: str = "packed"
    compiled: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    fusion: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str, path: Path) -> Manifest:
        """Parse a manifest.

        Raises:
            BundleError: if it is no manifest, of a newer format, or names files outside.
        """
        try:
            data = json.loads(text)
            if data["format"] > FORMAT:
                raise BundleError(
                    f"{path}: written by a newer edgetie (format {data['format']}); update edgetie"
                )
            data["signature"] = Signature(**data["signature"])
            if data.get("encoder") is not None:
                data["encoder"] = Signature(**data["encoder"])
            data["ties"] = [TieGroup.from_dict(group) for group in data["ties"]]
            manifest = Manifest(**data)
            require_types(manifest)
            require_types(manifest.signature)
            if manifest.encoder is not None:
                require_types(manifest.encoder)
            for name, entry in manifest.files.items():
                if Path(name).name != name:
                    raise ValueError(f"file {name!r} is outside the bundle")
                if not (isinstance(entry["bytes"], int) and isinstance(entry["sha256"], str)):
                    raise TypeError(f"file {name!r} needs bytes and sha256")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(
                f"{path}: not a valid manifest ({type(error).__name__}: {error}); export again"
            ) from error
        return manifest


@dataclass
class Bundle:
    """An opened bundle, or a bare ONNX file treated as one (``manifest`` is then ``None``).

    ``model_path`` is the model, or the decoder of a bundle with an encoder beside it.
    """

    directory: Path
    model_path: Path
    manifest: Manifest | None

    @property
    def model_paths(self) -> list[Path]:
        """Every ONNX file: the decoder behind its encoder, or its graph for prompts."""
        if self.manifest is not None and self.manifest.encoder is not None:
            return [self.directory / ENCODER, self.model_path]
        if self.manifest is not None and (self.directory / PREFILL).is_file():
            return [self.directory / PREFILL, self.model_path]
        return [self.model_path]

    @property
    def has_fixed_shapes(self) -> bool:
        """Whether every input has a fixed shape, as :mod:`edgetie.fixed_shapes` gives them."""
        inputs = self.manifest.signature.inputs if self.manifest is not None else []
        sizes = [size for value in inputs for size in value["shape"]]
        return bool(sizes) and all(isinstance(size, int) for size in sizes)

    @property
    def task(self) -> str:
        """What the model does; a bare ONNX file is taken for a decoder."""
        return self.manifest.task if self.manifest is not None else "causal-lm"

    @property
    def files(self) -> list[Path]:
        """All files that belong to it; for a bare ONNX file, that file and its data."""
        if self.manifest is not None:
            return sorted(path for path in self.directory.iterdir() if path.is_file())
        return [self.model_path, *self.data_files]

    @property
    def data_files(self) -> list[Path]:
        """The files that weights lie in."""
        if self.manifest is None:
            return external_data_files(self.model_path)
        return [self.directory / n for n in self.manifest.files if n.endswith(Path(DATA).suffix)]

    @property
    def file_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    def verify_files(self, *, hashes: bool = False) -> None:
        """Check that every file has the size the manifest says and, if asked, the SHA-256.

        Raises:
            BundleError: naming the first file that is missing or differs.
        """
        if self.manifest is None:
            return
        for name, expected in self.manifest.files.items():
            path = self.directory / name
            if not path.is_file():
                raise BundleError(f"{path}: missing from the bundle; export or copy it again")
            size = path.stat().st_size
            if size != expected["bytes"]:
                raise BundleError(
                    f"{path}: {size:,} bytes, but the manifest says {expected['bytes']:,} "
                    "(truncated?); export or copy it again"
                )
            if hashes and _sha256(path) != expected["sha256"]:
                raise BundleError(
                    f"{path}: damaged or changed, its SHA-256 is not the manifest's; "
                    "export or copy it again"
                )


def open_bundle(path: str | os.PathLike[str], *, hashes: bool = False) -> Bundle:
    """Open a bundle directory, a directory with one ONNX model, or an ``.onnx`` file.

    Checks that the model file and its external data are there and whole, without reading weights.

    Args:
        path: where it is.
        hashes: also check every file of a bundle against the SHA-256 in its manifest.

    Raises:
        BundleError: if there is no model, or a file is missing, truncated or damaged.
    """
    where = Path(path)
    require_utf8(where)
    if where.is_file():
        bundle = Bundle(where.parent, where, None)
    elif where.is_dir():
        if (where / MANIFEST).is_file():
            text = (where / MANIFEST).read_text(encoding="utf-8", errors="replace")
            manifest = Manifest.from_json(text, where / MANIFEST)
            model = MODEL if manifest.encoder is None else DECODER
            bundle = Bundle(where, where / model, manifest)
        else:
            models = sorted(where.glob("*.onnx"))
            if len(models) != 1:
                found = "no .onnx file" if not models else f"{len(models)} .onnx files"
                raise BundleError(f"{where}: {found} and no {MANIFEST}; name a bundle or one file")
            bundle = Bundle(where, models[0], None)
    else:
        what = "neither a file nor a directory" if where.exists() else "no such file or directory"
        raise BundleError(f"{where}: {what}; name a bundle or an .onnx file")
    if bundle.manifest is None:
        check_external_data(bundle.model_path)
    else:  # it knows the files' sizes, so that the graph need not be read
        bundle.verify_files(hashes=hashes)
    return bundle


def require_utf8(path: Path) -> None:
    """Refuse a path that is not UTF-8: ONNX Runtime and the tokenizers cannot open it.

    Raises:
        BundleError: naming the path.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise BundleError(f"{path}: its name is not UTF-8; rename it") from error


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``edgetie.json``, with the size and SHA-256 of every file already in ``directory``."""
    manifest.files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(directory.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    (directory / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(values: Any) -> list[dict[str, Any]]:
    """``{name, dtype, shape}`` of graph inputs or outputs; symbolic dimensions by name."""
    return [
        {
            "name": value.name,
            "dtype": value.dtype.name.lower(),
            "shape": [d if isinstance(d, int) else str(d.value) for d in value.shape or ()],
        }
        for value in values
    ]


def suppressed_token_ids(directory: Path) -> tuple[list[int], list[int]]:
    """Tokens that are never generated, and those that do not come first."""
    never, first = (
        _setting(directory, name) or [] for name in ("suppress_tokens", "begin_suppress_tokens")
    )
    return list(never), [*never, *first]


def language_token_ids(directory: Path) -> dict[str, int]:
    """Tokens that name the language of a sound, by its code; empty if the model has none."""
    found = _setting(directory, "lang_to_id") or {}
    return {name.strip("<|>"): token for name, token in found.items()}


def eos_token_ids(directory: Path) -> list[int]:
    """The tokens that end a text, from the generation configuration or the configuration."""
    ends = _setting(directory, "eos_token_id")
    return [ends] if isinstance(ends, int) else list(ends or ())


def start_token_ids(directory: Path) -> list[int]:
    """The tokens that a decoder behind an encoder starts with: its start, forced ones, and that
    no timestamps are wanted, where a model has a token for that.
    """
    start = _setting(directory, "decoder_start_token_id")
    start = _setting(directory, "bos_token_id") if start is None else start
    forced = _setting(directory, "forced_decoder_ids") or []
    tokens = [start, _setting(directory, "forced_bos_token_id"), *(token for _, token in forced)]
    silent = _setting(directory, "no_timestamps_token_id")
    tokens += [silent] if silent not in tokens else []
    return [token for token in tokens if isinstance(token, int)]


def _setting(directory: Path, name: str) -> Any:
    """A setting of the generation configuration, or else of the configuration."""
    for file in CONFIGURATIONS:
        path = directory / file
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8")).get(name)
            except (ValueError, AttributeError) as error:
                raise BundleError(f"{path}: not valid JSON ({error})") from error
            if found is not None:
                return found
    return None
