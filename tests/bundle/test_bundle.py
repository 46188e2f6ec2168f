"""Bundles are opened with checks of their files, or refused in one line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import onnx
import pytest
from runtime_models import write_chat_bundle, write_plain

from edgetie.bundle.atomic import check_destination
from edgetie.bundle.bundle import open_bundle
from edgetie.errors import BundleError
from edgetie.graph.external_data import check_external_data


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_chat_bundle(tmp_path / "bundle")


def test_hash_finds_a_changed_byte(bundle: Path) -> None:
    path = bundle / "model.onnx.data"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    open_bundle(bundle)  # sizes alone
    with pytest.raises(BundleError, match=r"model\.onnx\.data: damaged or changed"):
        open_bundle(bundle, hashes=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("location", "../x"), ("location", "/etc/passwd"), ("location", ""),
        ("offset", "-5"), ("offset", "many"), ("length", "-1"),
    ],
)  # fmt: skip
def test_external_data_outside_the_file(tmp_path: Path, key: str, value: str) -> None:
    write_plain(tmp_path)
    path = next(tmp_path.glob("*.onnx"))
    model = onnx.load(str(path), load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.external_data)
    next(entry for entry in tensor.external_data if entry.key == key).value = value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=tensor.name):
        check_external_data(path)


def test_name_that_is_not_utf8(bundle: Path) -> None:
    other = os.fsdecode(os.fsencode(bundle.parent) + b"/caf\xe9")
    try:
        shutil.copytree(bundle, other)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(BundleError, match="not UTF-8"):
        open_bundle(other)
    with pytest.raises(BundleError, match="not UTF-8"):
        check_destination(other, force=True)


def test_a_neighbour_of_a_bare_file_is_no_part_of_it(bundle: Path) -> None:
    shutil.copyfile(bundle / "model.onnx", bundle / "prefill_model.onnx")
    opened = open_bundle(bundle / "prefill_model.onnx")
    assert opened.model_paths == [bundle / "prefill_model.onnx"]
    assert open_bundle(bundle / "model.onnx").model_paths == [bundle / "model.onnx"]


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        (["config.json", "model.safetensors"], ".", "a model that was not exported; export it"),
        (["model.Q8_0.gguf"], ".", "weights that were not exported; export them first"),
        (["model.gguf"], "model.gguf", "a model that was not exported; export it"),
        (["adapter_config.json", "a.safetensors"], ".", "is an adapter of my/base; merge it into"),
        (["config.json"], ".", r"no \.onnx file"),
    ],
)
def test_what_was_not_exported_says_so(
    tmp_path: Path, files: list[str], name: str, message: str
) -> None:
    for file in files:
        (tmp_path / file).write_text('{"base_model_name_or_path": "my/base"}')
    with pytest.raises(BundleError, match=message):
        open_bundle(tmp_path / name)
