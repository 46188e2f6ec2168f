"""Write a folder that an app developer starts from: model, tokenizer and a program that runs."""

import json
import os
import platform
import shutil
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NoReturn

import onnx_ir as ir

from edgetie.bundle.atomic import atomic_directory
from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.bundle.names import (
    GENAI_PROCESSOR,
    IMAGE_LM,
    IMAGE_TO_TEXT,
    MANIFEST,
    PREPROCESSOR,
    PROCESSOR,
    STARTER,
)
from edgetie.deploy.app_settings import app_settings
from edgetie.deploy.c_header import c_header
from edgetie.deploy.chat_format import read_chat_format
from edgetie.deploy.images.image_settings import PROCESSOR_GRAPH
from edgetie.deploy.images.processor_graph import processor_graph
from edgetie.deploy.mobile_usability import usability
from edgetie.deploy.ort_format import MODEL, OPERATORS, write_operators, write_ort
from edgetie.deploy.targets import DEPLOY_TARGETS, RUNTIME, DeployTarget
from edgetie.deploy.tokenizer_tables import write_tables
from edgetie.errors import BundleError, EdgetieError, ProviderError
from edgetie.kernels import get_library_path, library_name
from edgetie.progress import Progress, Stages
from edgetie.runtime.images.processor import ImageProcessor
from edgetie.runtime.text.tokenizer import TOKENIZER, Tokenizer
from edgetie.targets import SCHEMES, TARGETS

_WITH_FIELDS = {".md", ".html", ".kts", ".txt", ".yml", ""}
_RUN_IT = "run it with edgetie generate"
_LARGE_BYTES = 50_000_000
_IMAGE_TASKS = (IMAGE_LM, IMAGE_TO_TEXT)


@dataclass(frozen=True)
class Deployment:
    """What :func:`deploy_model` wrote.

    Attributes:
        directory: where.
        target: for what.
        scheme: of the model's quantization, or ``fp32``.
        files: size in bytes of every file, by its path in the folder.
        notes: what the starter does differently from ``edgetie generate``, and advice.
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
    force: bool = False,
    progress: Progress | None = None,
) -> Deployment:
    """Write a folder that runs as it is: the model in ``model/``, a starter program, a README.

    Args:
        bundle: a decoder (causal-lm), a language model that reads images (image-text-to-text), or
            one that writes the text of an image (image-to-text), with a tokenizer, quantized for
            the target.
        target: a name of :data:`edgetie.deploy.targets.DEPLOY_TARGETS`.
        output: the folder; must not exist unless ``force``.
        ort_format: write the model as one file of the format ``.ort``, with the operators that a
            reduced build of ONNX Runtime needs for it (:mod:`edgetie.deploy.ort_format`).
        force: replace a folder that an earlier call wrote, but no other.
        progress: told about each step.

    Raises:
        EdgetieError: if there is no such target, or its starter does not read ``.ort``.
        BundleError: if the bundle cannot be read, is not such a model, reads images in a way that
            starters do not, or has a scheme that does not run there.
        ImageError: if the model reads images, and Pillow is not installed.
    """
    stages = progress or Stages()
    spec = DEPLOY_TARGETS.get(target)
    if spec is None:
        raise EdgetieError(f"target {target} is unknown; one of {', '.join(DEPLOY_TARGETS)}")
    if ort_format and not spec.ort_format:
        readers = ", ".join(each.name for each in DEPLOY_TARGETS.values() if each.ort_format)
        raise EdgetieError(f"the starter for {target} reads no .ort; those for {readers} do")
    stages.stage("Reading")
    opened = open_bundle(bundle, hashes=True)
    _require_deployable(opened, spec, ort_format)
    tokenizer = Tokenizer.from_bundle(opened)
    chat = read_chat_format(opened.directory, tokenizer)
    process = ImageProcessor.from_bundle(opened) if opened.task in _IMAGE_TASKS else None
    app = app_settings(opened, tokenizer, chat, ort_format=ort_format, process=process)
    notes = chat.notes
    with atomic_directory(output, force=force, marker=STARTER) as folder:
        stages.stage("Copying")
        model = folder / spec.assets / "model"
        _write_model(opened, spec, model, folder / OPERATORS if ort_format else None)
        if process is not None:
            ir.save(processor_graph(process), model / PROCESSOR_GRAPH)
        for name in filter(None, (spec.shared, spec.name)):
            part = folder / (spec.native if name == "native" else ".")
            with as_file(files("edgetie.deploy") / "templates" / name) as template:
                unwanted = shutil.ignore_patterns("__pycache__")  # of an installation
                shutil.copytree(template, part, ignore=unwanted, dirs_exist_ok=True)
        if spec.kernels:
            notes += _write_kernels(spec, folder)
            app |= {"kernels": _library(spec), "in_file": _reads_in_file(opened)}
        if spec.in_c:
            (folder / spec.native / "app.h").write_text(c_header(app), encoding="utf-8")
        else:
            _write_json(folder / "app.json", app)
        _write_json(folder / STARTER, _origin(opened, spec))
        fields = _fields(opened, spec, ort_format)
        written = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        for file in written:
            if file.suffix in _WITH_FIELDS and model not in file.parents:
                text = file.read_text(encoding="utf-8")
                for name, value in fields.items():
                    value = escape(value) if file.suffix == ".html" else value
                    text = text.replace("{{" + name + "}}", value)
                file.write_text(text, encoding="utf-8")
        sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in written}
    return Deployment(Path(output), spec, _scheme(opened), sizes, notes + _advice(opened, spec))


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _origin(bundle: Bundle, spec: DeployTarget) -> dict[str, Any]:
    """What a starter was made of."""
    return {
        "target": spec.name,
        "scheme": _scheme(bundle),
        "model": _name(bundle),
        "edgetie": version("edgetie"),
    }


def _name(bundle: Bundle) -> str:
    return str(bundle.manifest.source.get("name", bundle.directory.name))


def _scheme(bundle: Bundle) -> str:
    return str(bundle.manifest.quantization.get("scheme", bundle.manifest.precision))


def _advice(bundle: Bundle, spec: DeployTarget) -> tuple[str, ...]:
    """Advise to quantize a large float model."""
    size = sum(file.stat().st_size for file in bundle.data_files)
    if bundle.manifest.quantization or size < _LARGE_BYTES:
        return ()
    target = f"quantized for target {spec.quantize}, it takes about a quarter"
    return (f"its weights are floats, {size / 1e6:,.0f} MB; {target}",)


def _require_deployable(bundle: Bundle, spec: DeployTarget, ort_format: bool) -> None:
    """Refuse a bundle that the starter cannot run."""

    def refuse(reason: str) -> NoReturn:
        raise BundleError(f"{bundle.directory}: {reason}")

    signature = bundle.manifest.signature
    if bundle.is_bare:
        raise BundleError(f"{bundle.model_path}: not a bundle; export the model with edgetie")
    if bundle.manifest.adapters:
        refuse("has adapters, which starters do not switch; merge one into its base and export it")
    reads_images = bundle.task in _IMAGE_TASKS
    if reads_images and not spec.reads_images:
        readers = ", ".join(each.name for each in DEPLOY_TARGETS.values() if each.reads_images)
        refuse(f"reads images; the starters for {readers} do, that for {spec.name} does not")
    if signature.image_tokens is not None:
        refuse(f"its encoder reads the prompt too, which starters do not; {_RUN_IT}")
    if reads_images and ort_format:
        refuse("reads images, and is not one .ort file; deploy it without ort_format")
    if bundle.task != "causal-lm" and not reads_images:
        use = _RUN_IT
        if bundle.manifest.task == "masked-lm":
            use = "run it in your own app with edgetie.open_session or ONNX Runtime"
        tasks = ", ".join(("causal-lm", *_IMAGE_TASKS))
        refuse(f"a bundle for {bundle.task}; starters are for decoders ({tasks}); {use}")
    if not (bundle.directory / TOKENIZER).is_file():
        refuse(f"no {TOKENIZER}, which a starter needs; export with one")
    if _scheme(bundle) not in spec.schemes:
        refuse(
            f"{_scheme(bundle)} does not run there; quantize the float bundle for target "
            f"{spec.quantize}, whose scheme is {TARGETS[spec.quantize].scheme}"
        )
    if signature.suppressed_token_ids or signature.begin_suppressed_token_ids:
        refuse(f"its generation settings suppress tokens, which starters do not; {_RUN_IT}")
    cache = signature.cache
    if not cache or not (signature.cache_in_place or reads_images):
        refuse(f"its attention has no cache in place, which starters rely on; {_RUN_IT}")
    if len({(len(v.shape), *v.shape[1::2]) for v in cache}) > 1:
        refuse(f"its layers have caches of several kinds, and starters support one; {_RUN_IT}")


def _write_model(bundle: Bundle, spec: DeployTarget, model: Path, operators: Path | None) -> None:
    """Write the model and its tokenizer, as ``.ort`` if there is a file for its ``operators``."""
    model.mkdir(parents=True)
    left_out = {MANIFEST, "genai_config.json", GENAI_PROCESSOR, PREPROCESSOR, PROCESSOR}
    if spec.in_c:
        left_out.add(TOKENIZER)
        write_tables(bundle.directory / TOKENIZER, model / "tokenizer.bin")
    if operators is not None:
        left_out |= {bundle.model_path.name, f"{bundle.model_path.name}.data"}
        write_ort(bundle, model / MODEL)
        write_operators(model / MODEL, operators)
    for file in bundle.files:
        is_other_graph = file.suffix == ".onnx" and file not in bundle.model_paths
        if file.name not in left_out and not is_other_graph:
            shutil.copyfile(file, model / file.name)
    settings = model / "tokenizer_config.json"
    if not spec.in_c and not settings.exists():  # JavaScript's tokenizer needs one
        settings.write_text("{}\n", encoding="utf-8")


def _write_kernels(spec: DeployTarget, folder: Path) -> tuple[str, ...]:
    """Write the C code of edgetie's execution provider, and for Python its library; returns notes.

    Starters in C build the library themselves.
    """
    with as_file(files("edgetie.kernels") / "src") as sources:
        shutil.copytree(sources, folder / spec.kernels)
    if spec.in_c:
        return ()
    try:
        shutil.copyfile(get_library_path(), folder / _library(spec))
    except ProviderError as error:
        return (f"edgetie's execution provider is not in it: {error.message}",)
    return ()


def _library(spec: DeployTarget) -> str:
    return spec.library if spec.in_c else library_name()


def _reads_in_file(bundle: Bundle) -> bool:
    """Whether edgetie's provider reads the weights of products where their file is mapped."""
    scheme = SCHEMES.get(_scheme(bundle))
    return scheme is not None and scheme.has_blocks


def _fields(bundle: Bundle, spec: DeployTarget, ort_format: bool) -> dict[str, str]:
    """The model's own figures for the ``{{fields}}`` of templates."""
    files = f"from `model/{bundle.model_path.name}.data`, which stays next to the model"
    if ort_format:
        files = (
            f"from `model/{MODEL}`; `{OPERATORS}` lists its operators, for a build of ONNX Runtime "
            "without others (`--include_ops_by_config`)"
        )
    private = "ONNX Runtime packs weights into private memory, which counts."
    if bundle.manifest.weights_in_memory == "mapped":
        private = "The weights are read there."
    mapped = "pages of the file, which processes share and the system can drop, and some {}"
    memory = {
        "prepacked": "about its file size: ONNX Runtime packs the weights when it starts, and the "
        "starter releases the file's pages",
        "mixed": "about its file size",
        "mapped": mapped.format("15 MB of its own"),
    }[bundle.manifest.weights_in_memory]
    if spec.kernels and _reads_in_file(bundle):
        memory = mapped.format("25 MB of its own (its file size without edgetie's provider)")
        private = (
            "edgetie's provider reads the weights there. ONNX Runtime's own packs them into "
            "private memory, which counts: about the size of the file."
        )
    if ort_format and spec.name == "python":
        memory += " (before ONNX Runtime 1.26, which maps an .ort file, twice its file size)"
    return {
        "name": _name(bundle),
        "scheme": _scheme(bundle),
        "megabytes": f"{sum(file.stat().st_size for file in bundle.files) / 1e6:.0f}",
        "memory": memory,
        "private_memory": private,
        "files": files,
        "usability": usability(bundle.model_path, spec.mobile) if spec.mobile else "",
        "start": "\n".join(spec.start),
        # later versions may write what earlier ones do not know into an .ort file
        "runtime": version("onnxruntime") if ort_format else RUNTIME,
        "checked": spec.checked,
        "pillow": "pillow>=10\n" if bundle.task in _IMAGE_TASKS else "",
        "target": spec.name,
        "library": _library(spec),
        "machine": f"{platform.system()} on {platform.machine()}",
    }
