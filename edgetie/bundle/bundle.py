"""Bundles: the directory that ``export`` writes and everything else reads.

A bundle holds ``model.onnx`` (or ``encoder_model.onnx`` and ``decoder_model.onnx``), one
external-data file ``model.onnx.data``, the configuration and tokenizer files, and the manifest
``edgetie.json``. It is written under a temporary name beside
its destination and renamed when complete, so a crash, a full disk or Ctrl-C leaves nothing
half-written and an older bundle intact.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edgetie.bundle.manifest import Manifest, _sha256, bare_manifest
from edgetie.bundle.names import DATA, DECODER, ENCODER, MANIFEST, MODEL, PREFILL
from edgetie.errors import BundleError
from edgetie.graph.external_data import external_data_files


@dataclass
class Bundle:
    """An opened bundle, or a bare ONNX file with a manifest that is made up for it.

    ``model_path`` is the model, or the decoder if the bundle has an encoder.
    """

    directory: Path
    model_path: Path
    manifest: Manifest

    @property
    def is_bare(self) -> bool:
        """Whether this is an ONNX file without a manifest on disk, so that it has no file list."""
        return not self.manifest.files

    @property
    def path(self) -> Path:
        """The path to open it by: the directory, or the file if it is bare."""
        return self.model_path if self.is_bare else self.directory

    @property
    def model_paths(self) -> list[Path]:
        """Every ONNX file: the decoder behind its encoder, or its graph for prompts."""
        if self.manifest.encoder is not None:
            return [self.directory / ENCODER, self.model_path]
        if not self.is_bare and (self.directory / PREFILL).is_file():
            return [self.directory / PREFILL, self.model_path]
        return [self.model_path]

    @property
    def has_fixed_shapes(self) -> bool:
        """Whether every input has a fixed shape, as :mod:`edgetie.npu.fix_shapes` gives them."""
        sizes = [size for value in self.manifest.signature.inputs for size in value.shape]
        fixed = bool(sizes) and all(isinstance(size, int) for size in sizes)
        return fixed and not self.is_bare

    @property
    def task(self) -> str:
        """What the model does; a bare ONNX file is taken for a decoder."""
        return self.manifest.task

    @property
    def files(self) -> list[Path]:
        """All files that belong to it; for a bare ONNX file, that file and its data."""
        if self.is_bare:
            return [self.model_path, *self.data_files]
        return sorted(path for path in self.directory.iterdir() if path.is_file())

    @property
    def data_files(self) -> list[Path]:
        """The files that weights lie in."""
        if self.is_bare:
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
        return Bundle(where.parent, where, bare_manifest(where))
    if where.is_dir():
        if (where / MANIFEST).is_file():
            text = (where / MANIFEST).read_text(encoding="utf-8", errors="replace")
            manifest = Manifest.from_json(text, where / MANIFEST)
            model = MODEL if manifest.encoder is None else DECODER
            bundle = Bundle(where, where / model, manifest)
            bundle.verify_files(hashes=hashes)  # the manifest has their sizes: no graph is read
            return bundle
        models = sorted(where.glob("*.onnx"))
        if len(models) != 1:
            count = "no .onnx file" if not models else f"{len(models)} .onnx files"
            raise BundleError(f"{where}: {count} and no {MANIFEST}; name a bundle or one file")
        return Bundle(where, models[0], bare_manifest(models[0]))
    what = "neither a file nor a directory" if where.exists() else "no such file or directory"
    raise BundleError(f"{where}: {what}; name a bundle or an .onnx file")


def require_utf8(path: Path) -> None:
    """Refuse a path that is not UTF-8: ONNX Runtime and the tokenizers cannot open it.

    Raises:
        BundleError: naming the path.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise BundleError(f"{path}: its name is not UTF-8; rename it") from error
