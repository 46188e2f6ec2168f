"""Fixtures shared by the tests: the real model, and small ones exported once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import models
import pytest
from adapter_models import AdaptedBundle
from models import (
    source_of,
)

from edgetie.downloads import demo_model, demo_text
from edgetie.export.exporter import ExportReport, export_model
from edgetie.prune.pruner import prune_vocabulary
from edgetie.quantize.quantizer import quantize_model
from edgetie.sources.load import load_source
from edgetie.sources.source import Source

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell starts what runs in its background so, and every process below would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Have the downloads that several files need, before tests run beside each other."""
    if not hasattr(config, "workerinput"):
        demo_model()
        demo_text()


@pytest.fixture(scope="session")
def real_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, downloaded once and checked against its hash."""
    return demo_model()


@pytest.fixture(scope="session")
def real_export(real_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """The real model, exported to fp32."""
    directory = tmp_path_factory.mktemp("real") / "fp32"
    return export_model(str(real_gguf), directory, dequantize=True)


@pytest.fixture(scope="session")
def real_bundle(real_export: ExportReport) -> Path:
    """The directory of the real fp32 bundle."""
    return real_export.bundle.directory


@pytest.fixture(scope="session")
def real_int8(real_bundle: Path) -> Path:
    """The directory of the real int8 bundle."""
    target = real_bundle.parent / "int8"
    quantize_model(real_bundle, target)
    return target


@pytest.fixture(scope="session")
def real_pruned(real_bundle: Path) -> Path:
    """The directory of the real bundle with the tokens of the novel."""
    target = real_bundle.parent / "pruned"
    prune_vocabulary(real_bundle, target, keep_text=[demo_text()])
    return target


@pytest.fixture(scope="session")
def real_pruned_int8(real_pruned: Path) -> Path:
    """The directory of the real pruned int8 bundle."""
    target = real_pruned.parent / "pruned-int8"
    quantize_model(real_pruned, target)
    return target


@pytest.fixture(scope="session")
def real_mapped(real_bundle: Path) -> Path:
    """The directory of the real bundle whose weights ONNX Runtime reads in the mapped file."""
    target = real_bundle.parent / "mapped"
    quantize_model(real_bundle, target, scheme="int8-mapped")
    return target


@pytest.fixture(scope="session")
def reader_checkpoint() -> Path:
    """A small vision-language model that reads numbers, trained once."""
    from image_reader import trained_reader

    return trained_reader()


@pytest.fixture(scope="session")
def reader_bundle(reader_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of its fp32 bundle."""
    target = tmp_path_factory.mktemp("reader") / "fp32"
    return export_model(str(reader_checkpoint), target).bundle.directory


@pytest.fixture(scope="session")
def reader_int8(reader_bundle: Path) -> Path:
    """The directory of its int8 bundle."""
    target = reader_bundle.parent / "int8"
    quantize_model(reader_bundle, target)
    return target


@pytest.fixture(scope="session")
def adapted_bundle(tmp_path_factory: pytest.TempPathFactory) -> AdaptedBundle:
    """A small fp32 bundle with two LoRA adapters."""
    return AdaptedBundle(tmp_path_factory.mktemp("adapted"))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ExportReport]:
    """Export a small model by kind, once: a transformers class, or a function of ``models``."""
    done: dict[str, ExportReport] = {}
    directory = tmp_path_factory.mktemp("small")

    def get(kind: str) -> ExportReport:
        if kind not in done:
            own = getattr(models, kind, None)
            model = own() if own else models.transformers_model(kind)
            done[kind] = export_model(source_of(model, kind), directory / kind)
        return done[kind]

    return get


@pytest.fixture(scope="session")
def float_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a small model's fp32 bundle, by kind, with the logits of all tokens."""
    root = tmp_path_factory.mktemp("fp32")
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            if kind[0].isupper():
                model = models.transformers_model(kind)
                source = Source("transformers", kind, model, model.config, lambda target: None)
            else:
                source = load_source(f"models:{kind}")
            export_model(source, root / kind, logits="all", force=True)
            made[kind] = root / kind
        return made[kind]

    return get
