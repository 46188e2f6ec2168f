"""Folders that ``deploy`` writes of a small hand-built bundle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import runtime_models as tiny
from own_provider import needs_own_provider

import edgetie
from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.bundle.manifest import bare_manifest, write_manifest
from edgetie.deploy import deploy
from edgetie.deploy.deploy import deploy_model
from edgetie.deploy.targets import DEPLOY_TARGETS
from edgetie.errors import BundleError, EdgetieError
from edgetie.kernels import get_library_path, library_name
from edgetie.runtime.decoding.text_generation import generate_text
from edgetie.runtime.session import open_session
from edgetie.runtime.text.tokenizer import Tokenizer


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A chat model whose manifest describes its inputs, as an export's does."""
    bundle = open_bundle(tiny.write_chat_bundle(tmp_path / "bundle"))
    described = bare_manifest(bundle.model_path).signature
    signature = replace(
        bundle.manifest.signature, inputs=described.inputs, outputs=described.outputs
    )
    return rewritten(bundle, signature=signature)


def rewritten(bundle: Bundle, **changes: Any) -> Bundle:
    write_manifest(bundle.directory, replace(bundle.manifest, **changes))
    return open_bundle(bundle.directory)


def test_settings_of_a_chat_model(bundle: Bundle, tmp_path: Path) -> None:
    deployment = deploy_model(bundle.directory, "python", tmp_path / "app")
    app = json.loads((tmp_path / "app" / "app.json").read_text("utf-8"))
    assert app.pop("version")
    assert app == {
        "model": "model/model.onnx",
        "weights": "model/model.onnx.data",
        "ort_format": False,
        "before_prompt": "<|im_start|>user\n",
        "after_prompt": "<|im_end|>\n<|im_start|>assistant\n",
        "before_answer": "<|im_end|>\n<|im_start|>assistant\n",
        "next_prompt": "<|im_end|>\n<|im_start|>user\n",
        "trim_prompt": False,
        "trim_answer": False,
        "prefix": [],
        "suffix": [],
        "stop_tokens": [tiny.STOP],
        "sampling": {
            "temperature": 0.0,
            "top_k": None,
            "top_p": None,
            "repetition_penalty": 1.0,
        },
        "stop_strings": [],
        "max_positions": tiny.POSITIONS,
        "vocabulary": tiny.VOCAB,
        "logits": "last",
        "inputs": ["input_ids", "attention_mask"],
        "cache": ["0.key", "0.value", "1.key", "1.value"],
        "cache_dtype": "float",
        "cache_heads": tiny.HEADS,
        "cache_size": tiny.HEAD,
        "cache_in_place": True,
        "packed": True,
        "optimize": True,
        "images": None,
        "kernels": library_name(),
        "in_file": False,
    }
    assert deployment.scheme == "fp32"
    assert deployment.notes == ()
    sizes = {
        path.relative_to(tmp_path / "app").as_posix(): path.stat().st_size
        for path in (tmp_path / "app").rglob("*")
        if path.is_file()
    }
    assert deployment.files == sizes
    assert "model/edgetie.json" not in sizes
    assert deployment.to_dict()["bytes"] == sum(sizes.values())


def test_the_python_starter_answers_as_generate(bundle: Bundle, tmp_path: Path) -> None:
    deploy_model(bundle.directory, "python", tmp_path / "app")
    done = subprocess.run(
        [sys.executable, "app.py", "hello", "--max-new-tokens", "12"],
        cwd=tmp_path / "app", capture_output=True, text=True, check=True,
    )  # fmt: skip
    tokenizer = Tokenizer.from_bundle(bundle)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}])
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    session = open_session(bundle)
    *_, last = generate_text(session, tokenizer, [ids], max_new_tokens=12)
    assert last.completion is not None
    assert done.stdout == last.completion.text + "\n"


@pytest.mark.parametrize("target", DEPLOY_TARGETS)
def test_folders_are_complete(bundle: Bundle, tmp_path: Path, target: str) -> None:
    row = DEPLOY_TARGETS[target]
    deployment = deploy_model(bundle.directory, target, tmp_path / "app")
    model = f"{row.assets}/model/".removeprefix("./")
    tokenizer = "tokenizer.bin" if row.in_c else "tokenizer.json"
    settings = f"{row.native}/app.h".removeprefix("./") if row.in_c else "app.json"
    assert {f"{model}model.onnx", f"{model}{tokenizer}", settings, "README.md"} <= set(
        deployment.files
    )
    assert (f"{model}tokenizer.json" in deployment.files) != row.in_c
    for path in (tmp_path / "app").rglob("*"):
        if path.suffix in (".md", ".html", ".kts", ".txt"):
            assert "{{" not in path.read_text("utf-8")


@needs_own_provider
@pytest.mark.parametrize("target", DEPLOY_TARGETS)
def test_the_execution_provider_comes_with_its_source(
    bundle: Bundle, tmp_path: Path, target: str
) -> None:
    row = DEPLOY_TARGETS[target]
    files = deploy_model(bundle.directory, target, tmp_path / "app").files
    parts = [Path(name) for name in files if name.endswith(("/provider.c", "/set.inc"))]
    assert [part.parent.as_posix() for part in parts] == [row.kernels] * (2 if row.kernels else 0)
    assert row.kernels or not any("kernels" in name for name in files)
    built = Path(get_library_path())
    assert (built.name in files) == (target == "python")
    if target == "python":
        assert (tmp_path / "app" / built.name).read_bytes() == built.read_bytes()


def test_a_library_that_was_not_built_is_noted(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(
        Path(edgetie.__file__).parent, tmp_path / "edgetie",
        ignore=shutil.ignore_patterns("__pycache__", library_name()),
    )  # fmt: skip
    code = (
        "from edgetie import deploy_model\n"
        f"print(*deploy_model({str(bundle.directory)!r}, 'python', 'app').notes)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("edgetie's execution provider is not in it: its library was not")
    done = subprocess.run(
        [sys.executable, "app.py", "hello", "--max-new-tokens", "1"],
        cwd=tmp_path / "app", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr.startswith("app: run by cpu: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("target", [name for name, row in DEPLOY_TARGETS.items() if row.ort_format])
def test_models_as_ort(bundle: Bundle, tmp_path: Path, target: str) -> None:
    files = deploy_model(bundle.directory, target, tmp_path / "app", ort_format=True).files
    assert sum(name.endswith("/model.ort") for name in files) == 1
    assert not any(name.endswith((".onnx", ".data")) for name in files)
    assert "required_operators.config" in files


def test_force_replaces_what_deploy_wrote_and_nothing_else(bundle: Bundle, tmp_path: Path) -> None:
    app, other = tmp_path / "app", tmp_path / "other"
    deploy_model(bundle.directory, "python", app)
    (app / "more").touch()
    with pytest.raises(BundleError, match=r"app: already exists; .* or pass force=True"):
        deploy_model(bundle.directory, "node", app)
    assert (app / "app.py").exists()
    deploy_model(bundle.directory, "node", app, force=True)
    assert (app / "app.mjs").exists()
    assert not (app / "more").exists()
    assert not (app / "app.py").exists()
    other.mkdir()
    (other / "work").touch()
    for folder in (other, bundle.directory):
        with pytest.raises(BundleError, match="exists but is not a starter, so never replaced"):
            deploy_model(bundle.directory, "python", folder, force=True)
    with pytest.raises(BundleError, match="int3 does not run there"):  # nothing is half-replaced
        deploy_model(
            rewritten(bundle, quantization={"scheme": "int3"}).directory, "c", app, force=True
        )
    assert (app / "app.mjs").exists()


def test_large_float_weights_come_with_advice(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "_LARGE_BYTES", 0)
    (note,) = deploy_model(bundle.directory, "web", tmp_path / "app").notes
    assert "its weights are floats" in note
    assert "quantized for target web" in note


def test_targets_that_do_not_exist(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(EdgetieError, match="target mars is unknown; one of python, c"):
        deploy_model(bundle.directory, "mars", tmp_path / "app")
    with pytest.raises(EdgetieError, match=r"the starter for web reads no \.ort; those for"):
        deploy_model(bundle.directory, "web", tmp_path / "app", ort_format=True)


def test_bundles_that_starters_cannot_run(bundle: Bundle, tmp_path: Path) -> None:
    signature = bundle.manifest.signature
    cache = [replace(v, shape=(*v.shape[:3], 8)) if "1.key" in v.name else v
             for v in signature.inputs]  # fmt: skip
    (bundle.directory / "pirate.onnx_adapter").touch()
    for changes, reason in (
        ({"task": "masked-lm"}, "for masked-lm; starters are for decoders .*; run it in your own"),
        ({"task": "seq2seq-lm"}, "starters are for decoders .*; run it with edgetie generate"),
        ({"quantization": {"scheme": "int3"}}, "int3 does not run there; .*whose scheme is int8$"),
        ({"signature": replace(signature, suppressed_token_ids=[5])}, "suppress tokens"),
        ({"signature": replace(signature, begin_suppressed_token_ids=[5])}, "suppress tokens"),
        ({"signature": replace(signature, cache_in_place=False)}, "no cache in place"),
        (
            {"task": "image-to-text", "signature": replace(signature, image_tokens=4)},
            "its encoder reads the prompt too",
        ),
        ({"signature": replace(signature, inputs=cache)}, "caches of several kinds"),
        ({"adapters": {"pirate": {}}}, "has adapters, which starters do not switch; merge one"),
    ):
        rewritten(bundle, **changes)
        with pytest.raises(BundleError, match=reason):
            deploy_model(bundle.directory, "python", tmp_path / "app")
    rewritten(bundle)
    with pytest.raises(BundleError, match="not a bundle"):
        deploy_model(bundle.model_path, "python", tmp_path / "app")
    (bundle.directory / "chat_template.jinja").write_text("{{ messages | length }}", "utf-8")
    rewritten(bundle)
    with pytest.raises(BundleError, match="does not write the user's text once"):
        deploy_model(bundle.directory, "python", tmp_path / "app")
    (bundle.directory / "tokenizer.json").unlink()
    rewritten(bundle)
    with pytest.raises(BundleError, match=r"no tokenizer\.json"):
        deploy_model(bundle.directory, "python", tmp_path / "app")
    assert not (tmp_path / "app").exists()


def test_models_that_read_images_are_refused_where_starters_do_not(
    bundle: Bundle, tmp_path: Path
) -> None:
    rewritten(bundle, task="image-text-to-text")
    for target in ("node", "android", "ios"):
        reason = f"reads images; the starters for python, c, web do, that for {target} does not"
        with pytest.raises(BundleError, match=reason):
            deploy_model(bundle.directory, target, tmp_path / "app")
    with pytest.raises(BundleError, match=r"reads images, and is not one \.ort file"):
        deploy_model(bundle.directory, "c", tmp_path / "app", ort_format=True)
    with pytest.raises(BundleError, match=r"preprocessor_config\.json: missing"):
        deploy_model(bundle.directory, "c", tmp_path / "app")
