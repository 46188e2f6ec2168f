"""Starters of a real model, compared with ``generate``."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from command_line import (
    edgetie,
    refused,
)
from process_memory import mapping_of, memory_of
from starters import (
    PROMPT,
    PROMPTS,
    SUPPORT,
    TOKENS,
    Turn,
    assert_conversation,
    build,
    expected,
    headers,
    in_python,
    library,
    modules,
    read_turns,
    run,
    starter,
)
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers

from edgetie import deploy_model, open_bundle, open_session
from edgetie.bundle.manifest import write_manifest
from edgetie.deploy.ort_format import weights_of
from edgetie.deploy.targets import RUNTIME
from edgetie.deploy.tokenizer_tables import write_tables
from edgetie.downloads import demo_text
from edgetie.export.exporter import ExportReport

__all__ = ["headers", "library", "modules"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def c_starter(real_int8: Path, library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter in C."""
    folder = tmp_path_factory.mktemp("c") / "app"
    deploy_model(real_int8, "c", folder)
    return build(folder, library)


class Outcome(NamedTuple):
    """A conversation with the starter in C, and what the process held at its end."""

    turns: list[Turn]
    provider: str
    private_bytes: int
    resident_files: float


def run_c(folder: Path) -> Outcome:
    done = subprocess.run(
        ["./conversation", str(TOKENS), "0", "0", "", *PROMPTS],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    files = sum(file.stat().st_size for file in (folder / "model").iterdir())
    provider, *memory = done.stderr.splitlines()
    sizes = {name: 1024 * int(size) for name, size, _ in map(str.split, memory)}
    turns = read_turns(done.stdout)
    return Outcome(turns, provider, sizes["RssAnon:"], sizes["VmRSS:"] / files)


def nodes_of(provider: str) -> tuple[int, int]:
    """Nodes that edgetie's provider runs, and all, as a starter prints them."""
    found = re.search(r"edgetie \((\d+) of (\d+) nodes\)", provider)
    assert found, provider
    return int(found[1]), int(found[2])


def test_python_starter_needs_only_three_packages(real_int8: Path, tmp_path: Path) -> None:
    made = deploy_model(real_int8, "python", tmp_path / "app")
    assert made.files["model/model.onnx.data"] > 100e6
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    oldest = f"onnxruntime=={RUNTIME}"
    run([python, "-m", "pip", "install", "-q", "-r", "requirements.txt", oldest], tmp_path / "app")
    provider, turns = in_python(tmp_path / "app", PROMPTS, python, max_new_tokens=TOKENS)
    assert nodes_of(provider)[0] > 100
    # versions of onnxruntime differ in the last bit: edgetie must run on this one too
    packages = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    program = f"from starters import expected; print(repr(expected({str(real_int8)!r})))"
    paths = os.pathsep.join((str(packages), str(SUPPORT), *sys.path))
    wanted = run([sys.executable, "-c", program], tmp_path, PYTHONPATH=paths)
    assert_conversation(turns, eval(wanted, {"Turn": Turn}))
    answer = run([python, "app.py", PROMPT, "--max-new-tokens", TOKENS], tmp_path / "app")
    assert answer.startswith("The sky is blue because")


def test_c_starter_gives_the_same_tokens_in_its_files_memory(
    c_starter: Path, real_int8: Path
) -> None:
    done = run_c(c_starter)
    assert_conversation(done.turns, expected(real_int8))
    own, every = nodes_of(done.provider)
    nodes = open_session(real_int8, speculate=False).nodes_per_provider
    assert (own, every) == (nodes["EdgetieExecutionProvider"], sum(nodes.values()))
    assert done.private_bytes < 40 << 20
    assert done.resident_files < 1.33  # of the whole process, library and tokenizer included
    assert run(["./app", PROMPT], c_starter).startswith("The sky is blue because")


def test_starters_of_a_pruned_bundle(real_pruned_int8: Path, library: Path, tmp_path: Path) -> None:
    wanted = expected(real_pruned_int8)
    for target in ("python", "c"):
        deploy_model(real_pruned_int8, target, tmp_path / target)
    _, turns = in_python(tmp_path / "python", PROMPTS, max_new_tokens=TOKENS)
    assert_conversation(turns, wanted)
    assert_conversation(run_c(build(tmp_path / "c", library)).turns, wanted)


@pytest.mark.parametrize("content", [None, b"no library"])
def test_c_starter_runs_without_the_library_of_its_provider(
    c_starter: Path, real_int8: Path, tmp_path: Path, content: bytes | None
) -> None:
    shutil.copy(c_starter / "conversation", tmp_path)
    (tmp_path / "model").symlink_to(c_starter / "model")
    if content is not None:
        (tmp_path / "libedgetie_kernels.so").write_bytes(content)
    done = run_c(tmp_path)
    assert done.provider.startswith("run by cpu: ")
    assert "libedgetie_kernels.so: " in done.provider
    assert_conversation(done.turns, expected(real_int8, provider="cpu"))
    assert done.resident_files < 1.33


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("ort_format", [False, True])
def test_two_processes_share_one_copy_of_the_weights(
    real_int8: Path, tmp_path: Path, ort_format: bool
) -> None:
    made = deploy_model(real_int8, "python", tmp_path / "app", ort_format=ort_format)
    weights = tmp_path / "app" / "model" / ("model.ort" if ort_format else "model.onnx.data")
    program = "import sys; from model import Model; model = Model(); "
    program += "list(model.answer('a', max_new_tokens=2)); "
    program += "print(model.provider, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen(command, cwd=tmp_path / "app", **pipes) as one,
        subprocess.Popen(command, cwd=tmp_path / "app", **pipes) as two,
    ):
        for process in (one, two):
            assert process.stdout.readline().startswith("edgetie")
        found = [mapping_of(weights, process.pid) for process in (one, two)]
        private = [memory_of(process.pid)["RssAnon:"] for process in (one, two)]
    size = made.files[f"model/{weights.name}"]
    assert all(sizes["Rss:"] > 0.9 * size for sizes in found)
    assert all(sizes["Anonymous:"] == 0 for sizes in found)
    assert sum(sizes["Pss:"] for sizes in found) < 1.1 * size
    assert max(private) < 0.6 * size  # with Python and its imports


def test_ort_format_has_one_embedding_table(real_int8: Path, library: Path, tmp_path: Path) -> None:
    made = deploy_model(real_int8, "c", tmp_path / "app", ort_format=True)
    bundle = open_bundle(real_int8)
    assert made.files["model/model.ort"] < 1.02 * sum(x.stat().st_size for x in bundle.files)
    weights = weights_of(tmp_path / "app" / "model" / "model.ort")
    (tied,) = bundle.manifest.ties
    assert list(weights.values()).count(weights[tied.name]) == 1
    done = run_c(build(tmp_path / "app", library))
    assert_conversation(done.turns, expected(real_int8))
    assert done.provider == "run by edgetie"
    assert done.private_bytes < 40 << 20
    assert done.resident_files < 1.35
    operators = (tmp_path / "app" / "required_operators.config").read_text("utf-8")
    assert "com.microsoft;1;GatherBlockQuantized,GroupQueryAttention,MatMulNBits" in operators
    assert str(tmp_path) not in operators


@pytest.mark.parametrize("target", ["python", "c", "node"])
def test_an_interrupt_ends_the_answer_and_not_the_program(
    real_int8: Path, c_starter: Path, modules: Path, tmp_path: Path, target: str
) -> None:
    app, command = tmp_path / "app", [sys.executable, "app.py"]
    if target == "c":
        app, command = c_starter, ["./app"]
    elif target == "node":
        command = ["node", starter(real_int8, target, app, modules) / "app.mjs"]
    else:
        deploy_model(real_int8, target, app)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "--max-new-tokens", "2000"], cwd=app, **pipes) as process:
        process.stdin.write(b"Count from one to one thousand, one number per line.\n")
        process.stdin.flush()
        process.stdout.read(1)  # the answer has begun
        process.send_signal(signal.SIGINT)
        text, said = process.communicate(b"What is the capital of Spain?\n")
    assert process.returncode == 0, said
    assert text.count(b"\n") >= 2  # the second answer, too
    assert len(text) < 1000


def test_ort_format_for_the_web_is_refused(real_int8: Path, tmp_path: Path) -> None:
    options = ("--ort", "--output", "app", "--quiet")
    done = edgetie("deploy", real_int8, "--for", "web", *options, cwd=tmp_path)
    refused(done, "the starter for web reads no .ort")
    assert not (tmp_path / "app").exists()


def test_c_tokenizer_is_the_models(c_starter: Path, real_int8: Path, tmp_path: Path) -> None:
    program = tmp_path / "encode.c"
    program.write_text(
        '#include "tokenizer.h"\n#include <stdio.h>\n#include <stdlib.h>\n'
        "int main(int n, char **v) {\n"
        "  static char text[1 << 20];\n"
        '  FILE *file = fopen(v[2], "rb");\n'
        "  Tokenizer *t = tokenizer_open(v[1]);\n"
        "  if (n < 3 || !file || !t) return 1;\n"
        "  text[fread(text, 1, sizeof text - 1, file)] = 0;\n"
        "  size_t count;\n"
        "  int64_t *ids = tokenizer_encode(t, text, strlen(text), &count);\n"
        '  for (size_t i = 0; i < count; i++) printf("%ld\\n", (long)ids[i]);\n'
        "  free(ids), tokenizer_close(t), fclose(file);\n"
        "}\n",
        "utf-8",
    )
    flags = ["-std=c11", "-g", "-fsanitize=address,undefined", f"-I{c_starter}"]
    run(["cc", *flags, program, c_starter / "tokenizer.c", "-o", tmp_path / "encode"], tmp_path)
    backend = Backend.from_file(str(real_int8 / "tokenizer.json"))
    texts = [
        demo_text()[:100000],
        "Héllo  wörld\n\n\t x 123 4½ ²³ Ⅷ 日本語 😀👩‍👧 don't we'll I'M"
        " \u00a0n\u2003em  \n <|im_start|>a",
        "".join(map(chr, range(1, 0x600))) + " \u0300e\u0301 \u0378",
        "   ", "a", " a  b   c    ", "\n\n\na\n \n b",
    ]  # fmt: skip
    for number, text in enumerate(texts):
        (tmp_path / "text").write_bytes(text.encode())
        for digits in (False, True):
            backend.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True)] * digits
                + [pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
            backend.save(str(tmp_path / "tokenizer.json"))
            write_tables(tmp_path / "tokenizer.json", tmp_path / "tokenizer.bin")
            found = run([tmp_path / "encode", "tokenizer.bin", "text"], tmp_path)
            wanted = backend.encode(text, add_special_tokens=False).ids
            assert [int(token) for token in found.split()] == wanted, (number, digits)


def test_broken_tables_are_refused(c_starter: Path, tmp_path: Path) -> None:
    whole = (c_starter / "model" / "tokenizer.bin").read_bytes()
    shutil.copy(c_starter / "app", tmp_path / "app")
    (tmp_path / "model").mkdir()
    for text in (b"", b"EDT1", whole[:1000], b"EDT1" + b"\xff" * 1000, whole[:-10]):
        (tmp_path / "model" / "tokenizer.bin").write_bytes(text)
        done = subprocess.run(["./app", "a"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1
        assert "tokenizer.bin: cannot be read" in done.stderr


def changed(bundle: Path, directory: Path, file: str, **settings: object) -> Path:
    """A copy of a bundle with other settings in one of its files."""
    shutil.copytree(bundle, directory)
    path = directory / file
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | settings), "utf-8")
    manifest = open_bundle(bundle).manifest
    write_manifest(directory, manifest)
    return directory


def test_prompts_are_trimmed_if_the_template_trims(
    real_int8: Path, library: Path, tmp_path: Path
) -> None:
    template = "{{ strftime_now('%Y') }}{% for m in messages %}<{{ m.content | trim }}>{% endfor %}"
    bundle = changed(real_int8, tmp_path / "trims", "tokenizer_config.json", chat_template=template)
    (bundle / "chat_template.jinja").unlink(missing_ok=True)
    made = deploy_model(bundle, "c", tmp_path / "c")
    assert "date" in made.notes[0]
    deploy_model(bundle, "python", tmp_path / "python")
    build(tmp_path / "c", library)
    words, python = " hi there\n", [sys.executable, "app.py"]
    answers = {
        run([*command, asked, "--max-new-tokens", 4], tmp_path / folder)
        for asked in (words, words.strip())
        for command, folder in ((["./app"], "c"), (python, "python"))
    }
    assert len(answers) == 1
    for at, folder in ((["./app"], "c"), (python, "python")):
        done = subprocess.run(
            [*at, "hi", "--top-k", "many"], cwd=tmp_path / folder, capture_output=True, text=True
        )
        assert done.returncode
        assert "many" in done.stderr
        assert "Traceback" not in done.stderr


def test_what_cannot_be_deployed_is_refused(
    real_int8: Path, exported: Callable[[str], ExportReport], tmp_path: Path
) -> None:
    def to_out(bundle: Path, target: str) -> subprocess.CompletedProcess[str]:
        options = ("--for", target, "--output", "out", "--quiet")
        return edgetie("deploy", bundle, *options, cwd=tmp_path)

    small = exported("Llama").bundle.directory
    for bundle, target, said in (
        (small, "python", "no tokenizer.json"),
        (exported("cacheless").bundle.directory, "python", "no tokenizer.json"),
        (tmp_path / "nothing", "c", "no such file"),
        (small / "model.onnx", "c", "not a bundle"),
    ):
        refused(to_out(bundle, target), said)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    refused(to_out(real_int8, "c"), "out", "exists")
    refused(to_out(real_int8, "mars"), "--for")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["kept"]
