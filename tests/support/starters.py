"""What the tests of starters share: prompts, expected tokens, headers, libraries, builds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import debian
import pytest
from filelock import FileLock

from edgetie import Tokenizer, deploy_model, generate, open_bundle, open_session
from edgetie.downloads import cache_directory

SUPPORT = Path(__file__).parent
PROMPT = "Explain in one sentence why the sky is blue."


TOKENS = 32


def expected(bundle: Path, count: int = TOKENS, provider: str = "edgetie") -> list[int]:
    """The greedy tokens behind the prompt, past those that end a text."""
    opened = open_bundle(bundle)
    tokenizer = Tokenizer.from_bundle(opened)
    text = tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}])
    ids = tokenizer.encode(text, add_special_tokens=False)
    session = open_session(opened, provider=provider, threads=2)
    steps = generate(session, [ids], max_new_tokens=count, stop_token_ids=frozenset())
    return [int(step.tokens[0]) for step in steps]


def run(command: Sequence[object], folder: Path, **variables: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def headers() -> Path:
    """Headers of ONNX Runtime's C API, as Debian packages them, fetched once."""
    where = cache_directory() / "onnxruntime-headers"
    with FileLock(where.with_suffix(".lock")):
        if not (where / "onnxruntime_c_api.h").is_file():
            if not debian.available():
                pytest.skip("needs Debian's package of ONNX Runtime's headers")
            debian.unpack(["libonnxruntime-dev"], where.parent / "debian")
            shutil.copytree(where.parent / "debian" / "usr" / "include" / "onnxruntime", where)
    return where


@pytest.fixture(scope="session")
def library(headers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX Runtime as its releases come: these headers, the library of the Python package."""
    if shutil.which("make") is None or shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    import onnxruntime

    found = next((Path(onnxruntime.__path__[0]) / "capi").glob("libonnxruntime.so.1*"), None)
    if found is None:
        pytest.skip("this onnxruntime package has no library beside its module")
    folder = tmp_path_factory.mktemp("onnxruntime")
    (folder / "lib").mkdir(parents=True)
    (folder / "include").symlink_to(headers)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "lib" / name).symlink_to(found)
    return folder


def build(folder: Path, library: Path) -> Path:
    run(["make", f"ORT={library}", "CFLAGS=-O2 -g -Wall -Wextra -Werror"], folder)
    return folder


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


def starter(bundle: Path, target: str, folder: Path, modules: Path) -> Path:
    deploy_model(bundle, target, folder)
    named = json.loads((folder / "package.json").read_text("utf-8"))["dependencies"]
    assert {f"{name}@{version}" for name, version in named.items()} < set(PACKAGES)
    (folder / "node_modules").symlink_to(modules)
    return folder
