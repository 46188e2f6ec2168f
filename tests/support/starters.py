"""What the tests of starters share: prompts, expected tokens, headers, libraries, builds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import debian
import pytest
from filelock import FileLock

from edgetie import Tokenizer, deploy_model, generate_text, open_bundle, open_session
from edgetie.downloads import cache_directory

SUPPORT = Path(__file__).parent
PROMPT = "Explain in one sentence why the sky is blue."


TOKENS = 32


PROMPTS = (PROMPT, "And why is the sea?")


class Turn(NamedTuple):
    """An answer in a conversation.

    Attributes:
        read: tokens that were read for it.
        tokens: those that were written.
        text: of the answer.
    """

    read: int
    tokens: list[int]
    text: str


def expected(
    bundle: Path, prompts: Sequence[str] = PROMPTS, count: int = TOKENS, provider: str = "edgetie"
) -> list[Turn]:
    """The answers of ``generate``, which reads the whole conversation again for each."""
    opened = open_bundle(bundle)
    tokenizer, session = Tokenizer.from_bundle(opened), open_session(opened, provider=provider)
    messages, turns = [], []
    for prompt in prompts:
        messages.append({"role": "user", "content": prompt})
        ids = tokenizer.encode(tokenizer.chat_prompt(messages), add_special_tokens=False)
        *_, last = generate_text(session, tokenizer, [ids], max_new_tokens=count)
        assert last.completion is not None
        turns.append(Turn(len(ids), last.completion.tokens, last.completion.text))
        messages.append({"role": "assistant", "content": last.completion.text})
    return turns


def read_turns(output: str) -> list[Turn]:
    """Read what ``conversation.c``, ``conversation.mjs`` and ``desktop.kt`` print."""
    turns = []
    for turn in output.split("\x1e")[:-1]:
        read, tokens, text = turn.split("\x1f")
        written = [int(token) for token in tokens.split()]
        turns.append(Turn(int(read), written, bytes.fromhex(text).decode(errors="replace")))
    return turns


def in_python(
    app: Path, prompts: Sequence[str], python: object = sys.executable, **options: object
) -> tuple[str, list[Turn]]:
    """Hold a conversation with the starter in Python; returns its provider and the turns."""
    program = (
        "from model import Model; model = Model(); print(model.provider, end=chr(30))\n"
        f"for prompt in {prompts!r}:\n"
        f"    text = ''.join(model.answer(prompt, **{options!r})).encode().hex()\n"
        "    print(model.read, ' '.join(map(str, model.written)), text, sep=chr(31), end=chr(30))"
    )
    provider, _, turns = run([python, "-c", program], app).partition("\x1e")
    return provider, read_turns(turns)


def assert_conversation(turns: Sequence[Turn], wanted: Sequence[Turn]) -> None:
    """Compare a conversation with fresh runs over all of it; later turns read new tokens only."""
    assert [turn[1:] for turn in turns] == [turn[1:] for turn in wanted]
    assert turns[0].read == wanted[0].read
    for index in range(1, len(turns)):
        known = wanted[index - 1].read + len(wanted[index - 1].tokens) - 1
        assert turns[index].read == wanted[index].read - known


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


def build(folder: Path, library: Path, program: str = "conversation") -> Path:
    """Build the starter in C, and a program of ours, which prints what it reads and writes."""
    flags = ["-O2", "-g", "-Wall", "-Wextra", "-Werror"]
    run(["make", f"ORT={library}", f"CFLAGS={' '.join(flags)}"], folder)
    core = [file for file in folder.glob("*.c") if file.name != "app.c"]
    where = [f"-I{library}/include", f"-L{library}/lib", f"-Wl,-rpath,{library}/lib,-rpath,$ORIGIN"]
    run(
        ["cc", "-std=c11", *flags, "-I.", *where, SUPPORT / f"{program}.c", *core,
         "-o", program, "-lonnxruntime", "-ldl", "-lm"],
        folder,
    )  # fmt: skip
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
    if target == "web":
        run(["npm", "run", "vendor"], folder)
    return folder
