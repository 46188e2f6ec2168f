"""Other people's runtimes read a bundle as it stands, and give the same greedy tokens."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime_genai as og
import pytest
from test_deploy import run

from edgetie.bundle import open_bundle
from edgetie.runtime import Tokenizer, generate, open_session
from edgetie.sources.demo import cache_directory

TOKENS = 64
PROMPT = "Tell me a long story about a fox and a river."
SCRIPTS = Path(__file__).parent
OPTIMUM = ("optimum", "optimum-onnx", "transformers<5", "huggingface-hub<1", "tokenizers<0.23")


@pytest.fixture(params=["fp32", "int8"])
def bundle(request: pytest.FixtureRequest, real_bundle: Path, real_int8: Path) -> Path:
    return real_bundle if request.param == "fp32" else real_int8


def prompt(bundle: Path) -> list[int]:
    tokenizer = Tokenizer.from_bundle(open_bundle(bundle))
    text = tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}])
    return tokenizer.encode(text, add_special_tokens=False)


def ours(bundle: Path) -> list[int]:
    steps = generate(open_session(bundle, threads=2), [prompt(bundle)], max_new_tokens=TOKENS)
    tokens = [int(step.tokens[0]) for step in steps]
    assert len(tokens) == TOKENS
    return tokens


def test_onnxruntime_genai(bundle: Path) -> None:
    ids = prompt(bundle)
    model = og.Model(str(bundle))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + TOKENS, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(ids)
    theirs: list[int] = []
    while not generator.is_done() and len(theirs) < TOKENS:
        generator.generate_next_token()
        theirs.append(int(generator.get_next_tokens()[0]))
    assert theirs == ours(bundle)


def test_optimum(bundle: Path) -> None:
    """optimum needs transformers 4, which is put before the newer one on the path."""
    folder = cache_directory() / "optimum"
    if not (folder / "optimum").is_dir():
        scratch = folder.with_suffix(".part")
        shutil.rmtree(scratch, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        subprocess.run([*command, str(scratch), *OPTIMUM], check=True)
        scratch.rename(folder)
    command = [sys.executable, str(SCRIPTS / "optimum_model.py"), str(bundle), PROMPT, str(TOKENS)]
    found = run(command, folder, PYTHONPATH=str(folder))
    assert json.loads(found) == ours(bundle)


def test_transformers_js(bundle: Path) -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs Node.js and npm")
    folder = cache_directory() / "transformers.js"
    if not (folder / "node_modules" / "@huggingface" / "transformers").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}")
        command = ["npm", "install", "--no-audit", "--ignore-scripts", "@huggingface/transformers"]
        run([*command[:-1], f"{command[-1]}@^4.3.0"], folder)
    script = SCRIPTS / "transformers_js.mjs"
    found = run(["node", script, folder / "node_modules", bundle, PROMPT, TOKENS], folder)
    assert json.loads(found) == ours(bundle)
