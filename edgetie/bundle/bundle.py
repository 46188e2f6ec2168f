"""Open bundles: directories with a model, its weights, tokenizer files and a manifest."""

import os
from dataclasses import dataclass
from pathlib import Path

from edgetie.bundle.manifest import Manifest, bare_manifest, sha256_of
from edgetie.bundle.model_config import read_json
from edgetie.bundle.names import ADAPTER, CONFIG, DATA, DECODER, ENCODER, MANIFEST, MODEL, PREFILL
from edgetie.errors import BundleError
from edgetie.graph.external_data import external_data_files

_WEIGHTS = {".safetensors", ".gguf", ".bin", ".pt", ".pth"}


@dataclass
class Bundle:
    """An opened bundle, or a bare ONNX file with a manifest made from its graph.

    ``model_path`` is the model, or the decoder if the bundle has an encoder.
    """

    directory: Path
    model_path: Path
    manifest: Manifest

    @property
    def is_bare(self) -> bool:
        """Whether this is an ONNX file without a manifest on disk. It has no list of files then."""
        return not self.manifest.files

    @property
    def path(self) -> Path:
        """The path that opens it again: the directory, or the file if it is bare."""
        return self.model_path if self.is_bare else self.directory

    @property
    def model_paths(self) -> list[Path]:
        """All ONNX files. An encoder, or a graph for prompts, comes before the decoder."""
        if self.manifest.encoder is not None:
            return [self.directory / ENCODER, self.model_path]
        if not self.is_bare and (self.directory / PREFILL).is_file():
            return [self.directory / PREFILL, self.model_path]
        return [self.model_path]

    @property
    def has_fixed_shapes(self) -> bool:
        """Whether every input has a fixed shape, see :func:`edgetie.fix_shapes`."""
        sizes = [size for value in self.manifest.signature.inputs for size in value.shape]
        fixed = bool(sizes) and all(isinstance(size, int) for size in sizes)
        return fixed and not self.is_bare

    @property
    def task(self) -> str:
        """The task of the model. That of a bare ONNX file is ``causal-lm``."""
        return self.manifest.task

    @property
    def files(self) -> list[Path]:
        """All files in the directory; for a bare ONNX file, that file and its external data."""
        if self.is_bare:
            return [self.model_path, *self.data_files]
        return sorted(path for path in self.directory.iterdir() if path.is_file())

    @property
    def data_files(self) -> list[Path]:
        """The files that contain weights."""
        if self.is_bare:
            return external_data_files(self.model_path)
        return [self.directory / n for n in self.manifest.files if n.endswith(Path(DATA).suffix)]

    @property
    def file_bytes(self) -> int:
        """The size of all files together."""
        return sum(path.stat().st_size for path in self.files)

    def verify_files(self, *, hashes: bool = False) -> None:
        """Check the size of every file in the manifest, and its SHA-256 if ``hashes``.

        The SHA-256 of a graph, which is small, is checked always.

        Raises:
            BundleError: naming the first file that is missing or differs.
        """
        for name in self.manifest.files:
            self.verify_file(name, hashes=hashes or name.endswith(Path(MODEL).suffix))

    def verify_file(self, name: str, *, hashes: bool = True) -> None:
        """Check one file, if the manifest has it."""
        expected, path = self.manifest.files.get(name), self.directory / name
        if expected is None:
            return
        if not path.is_file():
            raise BundleError(f"{path}: missing from the bundle; export or copy it again")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise BundleError(
                f"{path}: {size:,} bytes, but the manifest says {expected['bytes']:,} "
                "(truncated?); export or copy it again"
            )
        if hashes and sha256_of(path) != expected["sha256"]:
            raise BundleError(
                f"{path}: damaged or changed, its SHA-256 is not the manifest's; "
                "export or copy it again"
            )


def open_bundle(path: str | os.PathLike[str], *, hashes: bool = False) -> Bundle:
    """Open a bundle directory, a directory with one ONNX model, or an ``.onnx`` file.

    Files are checked for presence and size, graphs by their SHA-256. No weights are read.

    Args:
        path: the directory or file.
        hashes: also compare every file of a bundle with the SHA-256 in its manifest.

    Raises:
        BundleError: if there is no model, or a file is missing, truncated or damaged.
    """
    directory = Path(path)
    require_utf8(directory)
    if directory.is_file():
        if directory.suffix in _WEIGHTS:
            raise BundleError(f"{directory}: is a model that was not exported; export it first")
        return Bundle(directory.parent, directory, bare_manifest(directory))
    if not directory.is_dir():
        what = (
            "neither a file nor a directory" if directory.exists() else "no such file or directory"
        )
        raise BundleError(f"{directory}: {what}; name a bundle or an .onnx file")
    file = directory / MANIFEST
    if file.is_file():
        manifest = Manifest.from_json(file.read_text(encoding="utf-8", errors="replace"), file)
        model_path = directory / (MODEL if manifest.encoder is None else DECODER)
        bundle = Bundle(directory, model_path, manifest)
        bundle.verify_files(hashes=hashes)  # a graph is not read if its hash is the manifest's
        return bundle
    models = sorted(directory.glob("*.onnx"))
    if not models:
        _refuse_float_model(directory)
    if len(models) != 1:
        count = f"{len(models)} .onnx files" if models else "no .onnx file"
        raise BundleError(f"{directory}: {count} and no {MANIFEST}; name a bundle or one file")
    return Bundle(directory, models[0], bare_manifest(models[0]))


def _refuse_float_model(directory: Path) -> None:
    """Refuse a directory with a model, or an adapter of one, that was not exported."""
    base = read_json(directory / ADAPTER).get("base_model_name_or_path")
    has_weights = any(path.suffix in _WEIGHTS for path in directory.iterdir())
    if (directory / CONFIG).is_file() and has_weights:
        raise BundleError(f"{directory}: is a model that was not exported; export it first")
    if (directory / ADAPTER).is_file():
        raise BundleError(
            f"{directory}: is an adapter of {base or 'another model'}; merge it into that model "
            "(peft's merge_and_unload), export the result and name that bundle"
        )
    if has_weights:
        raise BundleError(f"{directory}: has weights that were not exported; export them first")


def require_utf8(path: Path) -> None:
    """Refuse a path that is not UTF-8, which ONNX Runtime and tokenizers cannot open.

    Raises:
        BundleError: naming the path.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise BundleError(f"{path}: its name is not UTF-8; rename it") from error
