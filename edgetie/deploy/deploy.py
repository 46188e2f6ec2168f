"""``deploy``: a folder that an app developer starts from: model, tokenizer, a program that runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from edgetie.bundle.atomic import atomic_directory
from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.bundle.model_config import suppressed_token_ids
from edgetie.bundle.names import MANIFEST
from edgetie.deploy.c_header import c_header
from edgetie.deploy.mobile_usability import usability
from edgetie.deploy.ort_format import MODEL, OPERATORS, write_operators, write_ort
from edgetie.deploy.targets import DEPLOY_TARGETS, RUNTIME, DeployTarget
from edgetie.deploy.tokenizer_tables import write_tables
from edgetie.errors import BundleError, EdgetieError
from edgetie.progress import Progress, Stages
from edgetie.runtime.decoding.generation import stop_tokens
from edgetie.runtime.text.chat import PLACE
from edgetie.runtime.text.tokenizer import Tokenizer

APP = "app.json"
"""What a starter must know of the model."""

_REDUCED = (
    f"`{OPERATORS}` names its operators, for a build of ONNX Runtime with no others "
    "(`--include_ops_by_config`)"
)
_FILLED_IN = {".md", ".html", ".kts", ".txt", ""}
_NOT_SHIPPED = {MANIFEST, "genai_config.json"}


@dataclass(frozen=True)
class Deployment:
    """What :func:`deploy_model` wrote.

    Attributes:
        directory: where.
        target: for what.
        scheme: of the model's quantization, or ``fp32``.
        files: every file and its bytes, by its path in the folder.
        notes: what the starter does otherwise than ``edgetie generate``.
    """

    directory: Path
    target: DeployTarget
    scheme: str
    files: dict[str, int]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "directory": str(self.directory),
            "target": self.target.name,
            "scheme": self.scheme,
            "start": list(self.target.start),
            "files": self.files,
            "bytes": sum(self.files.values()),
            "notes": list(self.notes),
        }


def deploy_model(
    bundle: str | os.PathLike[str],
    target: str,
    output: str | os.PathLike[str],
    *,
    ort_format: bool = False,
    progress: Progress | None = None,
) -> Deployment:
    """Write a folder that runs as it is: the model in ``model/``, a starter program, a README.

    Args:
        bundle: a decoder (causal-lm) with a tokenizer, quantized for the target.
        target: a name of :data:`edgetie.deploy.deploy.targets.DEPLOY_TARGETS`.
        output: the folder; must not exist.
        ort_format: the model as one file of the format ``.ort``, with the operators that a reduced
            build of ONNX Runtime needs for it (:mod:`edgetie.deploy.deploy.ort_format`).
        progress: told about each step.

    Raises:
        EdgetieError: if there is no such target, or its starter does not read ``.ort``.
        BundleError: if the bundle cannot be read, is no decoder of text, or is not in a form that
            runs there.
    """
    stages = progress or Stages()
    row = DEPLOY_TARGETS.get(target)
    if row is None:
        raise EdgetieError(f"--for {target}: unknown; one of {', '.join(DEPLOY_TARGETS)}")
    if ort_format and not row.ort_format:
        able = ", ".join(each.name for each in DEPLOY_TARGETS.values() if each.ort_format)
        raise EdgetieError(f"--ort: the starter for {target} reads .onnx; those for {able} read it")
    stages.stage("Reading")
    opened = open_bundle(bundle, hashes=True)
    scheme = _scheme(opened)
    _require(opened, row, scheme)
    tokenizer = Tokenizer.from_bundle(opened)
    with atomic_directory(output, force=None) as folder:
        stages.stage("Copying")
        model = folder / row.assets / "model"
        model.mkdir(parents=True)
        left_out = {*_NOT_SHIPPED, *(("tokenizer.json",) if row.tables else ())}
        if ort_format:
            left_out |= {opened.model_path.name, f"{opened.model_path.name}.data"}
            write_ort(opened, model / MODEL)
            write_operators(model / MODEL, folder / OPERATORS)
        for file in opened.files:
            if file.name not in left_out:
                shutil.copyfile(file, model / file.name)
        settings = model / "tokenizer_config.json"
        if not row.tables and not settings.exists():  # JavaScript's tokenizer wants one
            settings.write_text("{}\n", encoding="utf-8")
        if row.tables:
            write_tables(opened.directory / "tokenizer.json", model / "tokenizer.bin")
        for name in (*row.shared, row.name):
            place = folder / (row.native if name == "native" else ".")
            with as_file(files("edgetie.deploy") / "templates" / name) as template:
                unwanted = shutil.ignore_patterns("__pycache__")  # of an installation
                shutil.copytree(template, place, ignore=unwanted, dirs_exist_ok=True)
        app = _app(opened, tokenizer, ort_format)
        if row.header:
            (folder / row.native / "app.h").write_text(c_header(app), encoding="utf-8")
        else:
            text = json.dumps(app, indent=1, ensure_ascii=False)
            (folder / APP).write_text(text + "\n", encoding="utf-8")
        for file in folder.rglob("*"):
            if file.suffix in _FILLED_IN and file.is_file() and model not in file.parents:
                _fill_in(file, opened, row, scheme, ort_format)
        sizes = {
            file.relative_to(folder).as_posix(): file.stat().st_size
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
    return Deployment(Path(output), row, scheme, sizes, _notes(opened, tokenizer, app))


def _scheme(bundle: Bundle) -> str:
    if bundle.is_bare:
        raise BundleError(f"{bundle.model_path}: no bundle; export the model with edgetie")
    return str(bundle.manifest.quantization.get("scheme", bundle.manifest.precision))


def _require(bundle: Bundle, row: DeployTarget, scheme: str) -> None:
    """Refuse what would not run there."""
    where = bundle.directory
    if bundle.manifest.task != "causal-lm":
        raise BundleError(
            f"{where}: a bundle for {bundle.manifest.task}; starters are for decoders (causal-lm)"
        )
    if not (where / "tokenizer.json").is_file():
        raise BundleError(f"{where}: no tokenizer.json, which a starter needs; export with one")
    if scheme not in row.schemes:
        raise BundleError(
            f"{where}: {scheme} does not run there; for {row.name} quantize with: edgetie quantize "
            f"--target {row.quantize}"
        )
    if any(suppressed_token_ids(where)):
        raise BundleError(
            f"{where}: its generation settings suppress tokens, which starters do not; run it with "
            "edgetie generate"
        )
    cache = bundle.manifest.signature.cache
    if not cache or not bundle.manifest.signature.cache_in_place:
        raise BundleError(
            f"{where}: its attention keeps no cache in place, which starters rely on; run it with "
            "edgetie generate"
        )
    if len({(len(v.shape), *v.shape[1::2]) for v in cache}) > 1:
        raise BundleError(
            f"{where}: its layers keep caches of several kinds, and starters know one; run it with "
            "edgetie generate"
        )


def _app(bundle: Bundle, tokenizer: Tokenizer, ort_format: bool) -> dict[str, Any]:
    """What a starter must know: prompt, stop tokens, inputs and cache."""
    signature = bundle.manifest.signature
    before, after, trim = "", "", False
    prefix, suffix = list[int](), list[int]()
    if tokenizer.chat_template is not None:
        before, after = _around_prompt(bundle, tokenizer, PLACE)
        trim = _around_prompt(bundle, tokenizer, f" {PLACE}\n") == (before, after)
    else:
        prefix, suffix = tokenizer.surrounding
    caches = signature.cache
    names = [v.name for v in caches]
    shape = caches[0].shape
    model = f"model/{MODEL if ort_format else bundle.model_path.name}"
    return {
        "version": _digest(bundle),
        "model": model,
        "weights": model if ort_format else f"{model}.data",
        "ort_format": ort_format,
        "before_prompt": before,
        "after_prompt": after,
        "trim": trim,
        "prefix": prefix,
        "suffix": suffix,
        "stop_tokens": sorted(stop_tokens(bundle)),
        "max_positions": signature.max_positions,
        "vocabulary": signature.vocab_size,
        "logits": signature.logits,
        "inputs": [v.name for v in signature.inputs if v not in caches],
        "cache": [name.removeprefix("past_key_values.") for name in names],
        "cache_dtype": caches[0].dtype,
        "cache_heads": shape[1],
        "cache_size": shape[3],
        "packed": bundle.manifest.weights_in_memory == "prepacked",
        "optimize": bundle.manifest.weights_in_memory != "mapped",
    }


def _notes(bundle: Bundle, tokenizer: Tokenizer, app: dict[str, Any]) -> tuple[str, ...]:
    """What a chat template does that no starter does."""
    if tokenizer.chat_template is None:
        return ()
    found = []
    if "strftime_now" in tokenizer.chat_template:
        found.append("its chat template writes the date; the starter keeps that of today")
    words = f" Aa{PLACE}aA\n"
    made = PLACE.join(_around_prompt(bundle, tokenizer, words))
    asked = words.strip() if app["trim"] else words
    if made != app["before_prompt"] + asked + app["after_prompt"]:
        found.append("its chat template changes the user's words; the starter does not")
    return tuple(found)


def _around_prompt(bundle: Bundle, tokenizer: Tokenizer, words: str) -> tuple[str, str]:
    """The text that a chat has in front of the place in the user's words, and behind it."""
    text = tokenizer.apply_chat_template([{"role": "user", "content": words}])
    parts = text.split(PLACE)
    if len(parts) != 2:
        raise BundleError(
            f"{bundle.directory}: its chat template does not write the user's words once, which "
            "starters rely on; run it with edgetie generate"
        )
    return parts[0], parts[1]


def _digest(bundle: Bundle) -> str:
    """Of graph and weights; another model has another one."""
    hashes = [f"{name} {entry['sha256']}" for name, entry in sorted(bundle.manifest.files.items())]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _fill_in(path: Path, bundle: Bundle, row: DeployTarget, scheme: str, ort_format: bool) -> None:
    """Put the model's own figures into a file of a starter."""
    weights = sum(file.stat().st_size for file in bundle.files)
    text = path.read_text(encoding="utf-8")
    files = f"from `model/{bundle.model_path.name}.data`, which stays beside the model"
    if ort_format:
        files = f"from `model/{MODEL}`; {_REDUCED}"
    memory = {
        "prepacked": "about its file size: ONNX Runtime packs the weights when it starts, and the "
        "starter lets go of the file's pages",
        "mixed": "about its file size",
        "mapped": "pages of the file, which processes share and the system can drop, and some "
        "15 MB of its own",
    }[bundle.manifest.weights_in_memory]
    if ort_format and row.name == "python":
        memory = "up to twice its file size: Python reads an .ort file whole, and keeps it"
    for name, value in {
        "name": str(bundle.manifest.source.get("name", bundle.directory.name)),
        "scheme": scheme,
        "megabytes": f"{weights / 1e6:.0f}",
        "memory": memory,
        "files": files,
        "usability": usability(bundle.model_path, row.mobile).sentence() if row.mobile else "",
        "start": "\n".join(row.start),
        # later versions may write what earlier ones do not know into an .ort file
        "runtime": version("onnxruntime") if ort_format else RUNTIME,
        "checked": row.checked,
        "target": row.name,
    }.items():
        value = escape(value) if path.suffix == ".html" else value
        text = text.replace("{{" + name + "}}", value)
    path.write_text(text, encoding="utf-8")
