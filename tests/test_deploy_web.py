"""``deploy`` for Node and for web pages: both run here, the page in headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_bad_input import edgetie, refused
from test_deploy import PROMPT, TOKENS, expected, run

from edgetie import deploy_model, quantize_model
from edgetie.downloads import cache_directory

PACKAGES = ("@huggingface/tokenizers@^0.2.0", "onnxruntime-node@^1.30.0",
            "onnxruntime-web@^1.30.0", "playwright-core@^1.50.0")  # fmt: skip


@pytest.fixture(scope="session")
def modules() -> Path:
    """A ``node_modules`` with what the starters name in their ``package.json``, made once."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs Node.js and npm")
    folder = cache_directory() / "npm"
    if not (folder / "node_modules" / "playwright-core").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}")
        run(["npm", "install", "--no-audit", *PACKAGES], folder, ONNXRUNTIME_NODE_INSTALL="skip")
    return folder / "node_modules"


@pytest.fixture(scope="session")
def real_plain(real_bundle: Path) -> Path:
    """The real model, quantized for the web."""
    target = real_bundle.parent / "plain"
    quantize_model(real_bundle, target, target="web")
    return target


def starter(bundle: Path, target: str, folder: Path, modules: Path) -> Path:
    deploy_model(bundle, target, folder)
    named = json.loads((folder / "package.json").read_text("utf-8"))["dependencies"]
    assert {f"{name}@{version}" for name, version in named.items()} < set(PACKAGES)
    (folder / "node_modules").symlink_to(modules)
    return folder


def test_node_gives_the_same_tokens(real_int8: Path, modules: Path, tmp_path: Path) -> None:
    app = starter(real_int8, "node", tmp_path / "app", modules)
    found = run(["node", "app.mjs", PROMPT, TOKENS, "--tokens"], app)
    assert [int(token) for token in found.split()] == expected(real_int8)
    assert run(["node", "app.mjs", PROMPT, TOKENS], app).startswith("The sky is blue because")


@contextmanager
def served(app: Path) -> Iterator[str]:
    with subprocess.Popen(
        ["node", "serve.mjs", "0"], cwd=app, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def drive(app: Path, modules: Path, query: str, prompt: str) -> dict[str, Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Chromium")
    script = Path(__file__).with_name("drive_page.mjs")
    with served(app) as url:
        out = run(["node", script, modules, chromium, url + query, prompt], app)
    found: dict[str, Any] = json.loads(out)
    return found


def test_page_gives_the_same_tokens_as_python(
    real_plain: Path, modules: Path, tmp_path: Path
) -> None:
    app = starter(real_plain, "web", tmp_path / "app", modules)
    found = drive(app, modules, f"?tokens={TOKENS}", PROMPT)
    assert found["isolated"]
    assert any(state.startswith("Downloading") for state in found["states"])
    assert [int(token) for token in found["tokens"].split()] == expected(real_plain)
    assert found["answer"].startswith("The sky is blue because")
    assert found["pieces"] > TOKENS / 2  # written as it came


def test_page_says_what_is_missing(real_plain: Path, modules: Path, tmp_path: Path) -> None:
    app = starter(real_plain, "web", tmp_path / "app", modules)
    assert "GPU" in drive(app, modules, "?device=webgpu", "")["states"][-1]
    os.truncate(app / "model" / "model.onnx.data", 1 << 20)
    assert "Failed" in drive(app, modules, "", "")["states"][-1]
    (app / "model" / "model.onnx.data").unlink()
    assert "model/model.onnx.data: 404" in drive(app, modules, "", "")["states"][-1]


def test_forms_that_browsers_do_not_run_are_refused(real_int8: Path, tmp_path: Path) -> None:
    done = edgetie("deploy", real_int8, "--for", "web", "--output", "x", "--quiet", cwd=tmp_path)
    refused(done, "int8 does not run there", "edgetie quantize --target web")
