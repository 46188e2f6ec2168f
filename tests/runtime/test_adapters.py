"""Adapters are mapped, switched between decoders, and refused if they are of another graph."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from adapter_models import IDS, AdaptedBundle, largest_error

from edgetie.bundle.bundle import open_bundle
from edgetie.bundle.manifest import write_manifest
from edgetie.errors import BundleError, EdgetieError
from edgetie.runtime.adapters import AdapterFile, require_adapter_name, write_adapter
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.session import open_session


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_file_has_what_was_written(tmp_path: Path, dtype: type) -> None:
    random = np.random.default_rng(0)
    tensors = {
        name: random.standard_normal(shape).astype(dtype)
        for name, shape in {"a.lora_A": (5, 3), "a.lora_B": (3, 7), "long" * 20: (1, 1)}.items()
    }
    path = tmp_path / "one.onnx_adapter"
    write_adapter(path, tensors)
    mapped = AdapterFile(path)
    theirs = ort.AdapterFormat.read_adapter(str(path)).get_parameters()
    assert mapped.tensors.keys() == tensors.keys() == theirs.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(mapped.tensors[name], array)
        np.testing.assert_array_equal(theirs[name].numpy(), array)
    mapped.release()
    np.testing.assert_array_equal(mapped.tensors["a.lora_A"], tensors["a.lora_A"])


@pytest.mark.parametrize("content", [b"", b"text", bytes(64), b"\xff" * 64])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "one.onnx_adapter"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="not an adapter in ONNX Runtime's format"):
        AdapterFile(path)
    with pytest.raises(BundleError, match="cannot be read"):
        AdapterFile(tmp_path / "missing")


def test_names() -> None:
    require_adapter_name("pirate-2.1_b")
    with pytest.raises(EdgetieError, match=r"adapter='\.\./x': not a name for an adapter"):
        require_adapter_name("../x")


def test_texts_keep_the_adapter_that_they_began_with(adapted_bundle: AdaptedBundle) -> None:
    session = open_session(adapted_bundle.directory, threads=1)
    alone = {}
    for name in ("small", "large", None):
        session.use_adapter(name)
        assert session.adapter == name
        alone[name] = [int(s.tokens[0]) for s in generate(session, [IDS], max_new_tokens=8)]
    assert len(set(map(tuple, alone.values()))) == 3
    session.use_adapter("small")
    steps = generate(session, [IDS], max_new_tokens=8)
    first = int(next(steps).tokens[0])
    session.use_adapter("large")  # whose pages are released when it is left
    session.use_adapter(None)
    assert [first, *(int(step.tokens[0]) for step in steps)] == alone["small"]


def test_a_batch_has_one_adapter(adapted_bundle: AdaptedBundle) -> None:
    session = open_session(adapted_bundle.directory, threads=1)
    session.use_adapter("large")
    decoder = Decoder(session, 2, len(IDS))
    assert decoder.adapter == "large"
    for row in decoder.prefill(np.array([IDS, IDS])):
        assert largest_error(row, adapted_bundle.logits["large"][-1]) < 1e-4


def test_unknown_names_are_refused(adapted_bundle: AdaptedBundle) -> None:
    session = open_session(adapted_bundle.directory, threads=1)
    with pytest.raises(BundleError, match=r"adapter='poet'.* it has small, large"):
        session.use_adapter("poet")
    assert session.adapter is None


def test_a_file_of_another_graph_is_refused(adapted_bundle: AdaptedBundle, tmp_path: Path) -> None:
    bundle = open_bundle(shutil.copytree(adapted_bundle.directory, tmp_path / "bundle"))
    mapped = AdapterFile(adapted_bundle.directory / "small.onnx_adapter").tensors
    for tensors in (
        {"another.lora_A": np.ones((64, 2), np.float32)},
        {name: array[1:] for name, array in mapped.items()},
    ):
        write_adapter(bundle.directory / "small.onnx_adapter", tensors)
        write_manifest(bundle.directory, bundle.manifest)
        with pytest.raises(BundleError, match=r"does not fit model\.onnx"):
            open_session(bundle.directory).use_adapter("small")


def test_a_manifest_names_adapters_with_files_only(
    adapted_bundle: AdaptedBundle, tmp_path: Path
) -> None:
    bundle = open_bundle(shutil.copytree(adapted_bundle.directory, tmp_path / "bundle"))
    bundle.manifest.adapters["../small"] = {}
    write_manifest(bundle.directory, bundle.manifest)
    with pytest.raises(BundleError, match=r"its files lack adapter '\.\./small'"):
        open_bundle(bundle.directory)
