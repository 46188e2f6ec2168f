"""``deploy`` for Node and for web pages: both run here, the page in headless Chromium."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import (
    edgetie,
    refused,
)
from starters import (
    PROMPT,
    PROMPTS,
    SUPPORT,
    TOKENS,
    assert_conversation,
    expected,
    modules,
    read_turns,
    run,
    starter,
)
from web_page import drive

from edgetie import quantize_model

__all__ = ["modules"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def real_plain(real_bundle: Path) -> Path:
    """The real model, quantized for the web."""
    target = real_bundle.parent / "plain"
    quantize_model(real_bundle, target, target="web")
    return target


def test_node_gives_the_same_tokens(real_int8: Path, modules: Path, tmp_path: Path) -> None:
    app = starter(real_int8, "node", tmp_path / "app", modules)
    found = run(["node", SUPPORT / "conversation.mjs", TOKENS, 0, 0, "", *PROMPTS], app)
    assert_conversation(read_turns(found), expected(real_int8, provider="cpu"))
    assert run(["node", "app.mjs", PROMPT], app).startswith("The sky is blue because")


def test_page_answers_as_python_does(real_plain: Path, modules: Path, tmp_path: Path) -> None:
    app = starter(real_plain, "web", tmp_path / "app", modules)
    count = (
        24  # WebAssembly rounds otherwise: longer answers part at tokens that are equally likely
    )
    found = drive(app, modules, f"?tokens={count}", PROMPTS)
    assert found["isolated"]
    assert any(state.startswith("Downloading") for state in found["states"])
    assert len({state for state in found["states"] if "written" in state}) > count  # as it came
    wanted = expected(real_plain, count=count, provider="cpu")
    for turn, answer in zip(found["turns"], wanted, strict=True):
        assert turn["during"] == "Reading…"  # not what the answer before took
        assert turn["answer"] == answer.text
        assert f"{len(answer.tokens)} written" in turn["state"]
    first, second = (int(turn["state"].split()[0]) for turn in found["turns"])
    assert first == wanted[0].read
    assert second == wanted[1].read - wanted[0].read - len(wanted[0].tokens) + 1
    assert found["left"] == ""  # a new conversation


def test_page_uses_only_the_files_in_lib(real_plain: Path, modules: Path, tmp_path: Path) -> None:
    app = starter(real_plain, "web", tmp_path / "app", modules)
    (app / "node_modules").unlink()
    found = drive(app, modules, "?tokens=300", (PROMPT, "And of Spain?"), stop="stop")
    library = {f"/lib/{file.name}" for file in (app / "lib").iterdir()}
    assert library == {path for path in found["requests"] if path.startswith("/lib/")}
    assert sum(file.stat().st_size for file in (app / "lib").iterdir()) < 15e6
    stopped, second = found["turns"]
    whole = expected(real_plain, (PROMPT,), count=300, provider="cpu")[0].text
    assert 0 < len(stopped["answer"]) < len(whole) - 20
    assert second["answer"]


def test_page_names_what_is_missing(real_plain: Path, modules: Path, tmp_path: Path) -> None:
    app = starter(real_plain, "web", tmp_path / "app", modules)
    assert "npm run vendor -- webgpu" in drive(app, modules, "?device=webgpu")["states"][-1]
    run(["npm", "run", "vendor", "--", "webgpu"], app)
    assert "GPU" in drive(app, modules, "?device=webgpu")["states"][-1]
    os.truncate(app / "model" / "model.onnx.data", 1 << 20)
    assert "Failed" in drive(app, modules, "")["states"][-1]
    (app / "model" / "model.onnx.data").unlink()
    assert "model/model.onnx.data: 404" in drive(app, modules, "")["states"][-1]


def test_schemes_that_browsers_do_not_run_are_refused(real_int8: Path, tmp_path: Path) -> None:
    done = edgetie("deploy", real_int8, "--for", "web", "--output", "x", "--quiet", cwd=tmp_path)
    refused(done, "int8 does not run there", "target web, whose scheme is int8-plain")
