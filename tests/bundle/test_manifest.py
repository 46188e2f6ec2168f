"""The manifest: made up for a bare ONNX file, written with hashes, and read again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from runtime_models import write_chat_bundle, write_plain

from edgetie.bundle.bundle import open_bundle
from edgetie.bundle.manifest import (
    Manifest,
    Signature,
    bare_manifest,
    require_types,
    write_manifest,
)
from edgetie.bundle.names import FORMAT, LAST_TOKEN_NODE, MANIFEST
from edgetie.errors import BundleError
from edgetie.graph.tensors import TensorInfo


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_chat_bundle(tmp_path / "bundle")


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    change(data)
    (bundle / MANIFEST).write_text(json.dumps(data), encoding="utf-8")


def write_graph(path: Path, *, node_name: str = "") -> Path:
    """``y = x + w`` whose weight ``w`` is also listed as an input, as old IR versions do."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"], name=node_name)],
        "g",
        [value("x", TensorProto.FLOAT, ["batch", 2]), value("w", TensorProto.FLOAT, [2])],
        [value("y", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])],
    )
    onnx.save(helper.make_model(graph), str(path))
    return path


def test_bare_manifest_has_the_signature_of_the_graph(tmp_path: Path) -> None:
    manifest = bare_manifest(write_graph(tmp_path / "m.onnx"))
    assert manifest.signature == Signature(
        [TensorInfo("x", "float", ("batch", 2))],
        [TensorInfo("y", "float", ("batch", 2))],
        logits="all",
    )
    assert (manifest.task, manifest.precision, manifest.weights_in_memory) == ("causal-lm", "", "")
    assert not any((manifest.source, manifest.ties, manifest.files, manifest.versions))


def test_bare_manifest_recognizes_the_node_that_keeps_the_last_token(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "m.onnx", node_name=LAST_TOKEN_NODE)
    assert bare_manifest(path).signature.logits == "last"


def test_bare_model_is_opened_as_file_or_directory(tmp_path: Path) -> None:
    (file,) = write_plain(tmp_path).glob("*.onnx")
    for path in (file, tmp_path):
        bundle = open_bundle(path)
        assert bundle.is_bare
        assert bundle.path == bundle.model_path == file
        assert bundle.files == [file, *bundle.data_files]
        assert bundle.manifest.signature.inputs[0].name == "input_ids"
        bundle.verify_files(hashes=True)


def test_bare_manifest_of_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not protobuf at all")
    with pytest.raises(BundleError, match=r"m\.onnx"):
        bare_manifest(tmp_path / "m.onnx")


def test_written_manifest_lists_sizes_and_hashes(tmp_path: Path) -> None:
    write_graph(tmp_path / "model.onnx")
    write_manifest(tmp_path, Manifest({}, "causal-lm", "fp32", Signature([], []), [], 2))
    data = (tmp_path / "model.onnx").read_bytes()
    bundle = open_bundle(tmp_path, hashes=True)
    assert not bundle.is_bare
    assert bundle.path == tmp_path
    assert bundle.manifest.files == {
        "model.onnx": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    }


def test_manifest_without_optional_fields_opens(tmp_path: Path) -> None:
    write_graph(tmp_path / "model.onnx")
    write_manifest(tmp_path, Manifest({}, "causal-lm", "fp32", Signature([], []), [], 2))
    written = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))
    required = ("source", "task", "precision", "signature", "ties", "unique_parameters")
    old = {name: written[name] for name in (*required, "files", "format")}
    for changes, weights in (({}, "prepacked"), ({"layout": "packed"}, "prepacked")):
        text = json.dumps({**old, **changes, "format": 1})
        (tmp_path / MANIFEST).write_text(text, encoding="utf-8")
        assert open_bundle(tmp_path).manifest.weights_in_memory == weights


def test_token_ids_of_an_older_manifest_come_from_the_configuration(tmp_path: Path) -> None:
    write_graph(tmp_path / "model.onnx")
    settings = {"eos_token_id": 9, "suppress_tokens": [3], "lang_to_id": {"<|en|>": 4}}
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    signature = Signature([], [], eos_token_ids=[2])
    write_manifest(tmp_path, Manifest({}, "causal-lm", "fp32", signature, [], 2))
    assert open_bundle(tmp_path).manifest.signature == signature
    data = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))
    for name in ("suppressed_token_ids", "begin_suppressed_token_ids", "language_token_ids"):
        del data["signature"][name]
    (tmp_path / MANIFEST).write_text(json.dumps(data), encoding="utf-8")
    read = open_bundle(tmp_path).manifest.signature
    assert (read.eos_token_ids, read.suppressed_token_ids) == ([2], [3])
    assert read.language_token_ids == {"en": 4}
    bare = open_bundle(tmp_path / "model.onnx").manifest.signature
    assert (bare.eos_token_ids, bare.suppressed_token_ids) == ([9], [3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format=99), "newer edgetie"),
        (lambda data: data.update(format="1"), "not a valid manifest"),
        (lambda data: data.update(surprise=1), "surprise"),
        (lambda data: data.pop("signature"), "signature"),
        (lambda data: data["signature"].update(max_positions="many"), "max_positions"),
        (lambda data: data["signature"].update(eos_token_ids=["2"]), "eos_token_ids"),
        (lambda data: data.update(files=["model.onnx"]), "files"),
        (lambda data: data["files"].update({"model.onnx": {"bytes": "1", "sha256": ""}}), "bytes"),
        (lambda data: data["files"].update({"../x": {"bytes": 1, "sha256": ""}}), "outside"),
        (lambda data: data["files"].update({"/etc/x": {"bytes": 1, "sha256": ""}}), "outside"),
        (lambda data: data["files"].update({"ghost": {"bytes": 1, "sha256": ""}}), "missing"),
        (lambda data: data.update(ties=[{"name": "x"}]), "not a valid manifest"),
    ],
)
def test_manifest_that_is_wrong(
    bundle: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_manifest(bundle, change)
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(bundle)
    assert str(bundle) in str(caught.value)


@pytest.mark.parametrize("data", [b"", b'{"format": 1, ', b"[1]", b"null", b"\xff\xfe\x00"])
def test_manifest_that_is_damaged(bundle: Path, data: bytes) -> None:
    (bundle / MANIFEST).write_bytes(data)
    with pytest.raises(BundleError, match="not a valid manifest"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("layout", "weights"), [("packed", "prepacked"), ("mapped", "mapped"), ("mixed", "mixed")]
)
def test_manifest_of_format_1_opens(bundle: Path, layout: str, weights: str) -> None:
    def age(data: dict[str, Any]) -> None:
        del data["weights_in_memory"]
        data.update(layout=layout, format=1)

    edit_manifest(bundle, age)
    manifest = open_bundle(bundle).manifest
    assert (manifest.weights_in_memory, manifest.format) == (weights, FORMAT)


def test_manifest_survives_a_round_trip(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert Manifest.from_json(manifest.to_json(), bundle / MANIFEST) == manifest


@dataclass
class Record:
    name: Any = "x"
    size: Any = 1
    limit: Any = None
    ids: Any = field(default_factory=list)
    files: Any = field(default_factory=dict)


Record.__annotations__ = {
    "name": "str", "size": "int", "limit": "int | None", "ids": "list[int]",
    "files": "dict[str, dict[str, Any]]",
}  # fmt: skip


@pytest.mark.parametrize(
    "values", [{}, {"limit": 3}, {"ids": [1, 2]}, {"files": {"a": {"bytes": 1, "sha256": ""}}}]
)
def test_records_that_fit(values: dict[str, Any]) -> None:
    require_types(Record(**values))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", 1),
        ("size", "1"),
        ("limit", "3"),
        ("ids", [1, "2"]),
        ("ids", 1),
        ("files", {"a": 1}),
    ],
)
def test_records_that_do_not_fit_name_the_field(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name} is not "):
        require_types(Record(**{name: value}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(surprise=1), "Manifest has no field 'surprise'"),
        (lambda d: d["signature"].update(surprise=1), "Signature has no field 'surprise'"),
        (lambda d: d["signature"].update(vocab_size=-7), "-7 is neither a size nor a token"),
        (lambda d: d["signature"].update(max_positions=1 << 70), "neither a size nor a token"),
        (lambda d: d["signature"]["inputs"].append({"name": [], "dtype": "INT64", "shape": []}),
         "name is not str"),
        (lambda d: d["signature"]["inputs"].append({"name": "x", "dtype": "", "shape": [None]}),
         "shape is not"),
        (lambda d: d["files"].clear(), "its files lack the model"),
    ],
)  # fmt: skip
def test_damaged_values_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    files = {"model.onnx": {"bytes": 1, "sha256": ""}}
    manifest = Manifest({}, "causal-lm", "fp32", Signature([], []), [], 0, files=files)
    data = json.loads(manifest.to_json())
    assert Manifest.from_json(json.dumps(data), tmp_path / "edgetie.json").files == files
    change(data)
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(json.dumps(data), tmp_path / "edgetie.json")


def test_documents_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a valid manifest"):
        Manifest.from_json("[" * 200_000, tmp_path / "edgetie.json")
