"""Give damaged inputs to every command, each in a process of its own.

``python damage_fuzz.py SEED RUNS [KIND ...]`` prints a JSON object: runs, exit codes, and what was
wrong. A command may succeed, or refuse in one line with nothing left behind; nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from damage import damage_bytes, damage_file, damage_json, damage_model, damage_safetensors

SECONDS = 120
COMMANDS: dict[str, tuple[str, ...]] = {
    "tie": ("tie", "{}", "--output", "out.onnx"),
    "quantize": ("quantize", "{}", "--output", "out"),
    "inspect": ("inspect", "{}", "--json"),
    "check": ("check", "{}", "--reference", "{}", "--max-tokens", "32"),
    "bench": ("bench", "{}", "--repeat", "1", "--prompt-tokens", "4", "--new-tokens", "2"),
    "generate": ("generate", "{}", "--prompt", "hello", "--max-new-tokens", "2", "--json"),
    "deploy": ("deploy", "{}", "--for", "python", "--output", "out"),
    "deploy in C": ("deploy", "{}", "--for", "c", "--ort", "--output", "out"),
    "fix-shapes": (
        "fix-shapes",
        "{}",
        "--output",
        "out",
        "--context",
        "16",
        "--prompt-tokens",
        "4",
    ),
    "compile": ("compile", "{}", "--output", "out"),
    "export": ("export", "{}", "--output", "out"),
}
ALL = tuple(name for name in COMMANDS if name != "export")
TEXT = ("generate", "generate", "check", "deploy", "deploy in C", "quantize")


def write_inputs(folder: Path) -> None:
    """Write one sound input of each kind."""
    import runtime_models
    from broken_models import LOOKUP, save, table
    from onnx import helper

    from edgetie.bundle.bundle import open_bundle
    from edgetie.bundle.manifest import write_manifest

    runtime_models.write_chat_bundle(folder / "fused")
    runtime_models.write_plain(folder / "plain")
    shutil.copytree(folder / "plain", folder / "bare")
    for name in ("plain", "bare"):
        for file in (folder / "fused").glob("*oke*"):
            shutil.copyfile(file, folder / name / file.name)
        (folder / name / "config.json").write_text(
            json.dumps({"eos_token_id": [2], "model_type": "llama", "suppress_tokens": []})
        )
    for name in ("fused", "plain"):
        shutil.copytree(folder / name, folder / "scratch")
        (folder / "scratch" / "edgetie.json").unlink(missing_ok=True)
        manifest = open_bundle(folder / "scratch").manifest
        shutil.rmtree(folder / "scratch")
        manifest.signature.cache_in_place = name == "fused"
        manifest.signature.max_positions = runtime_models.POSITIONS
        manifest.signature.vocab_size = runtime_models.VOCAB
        manifest.precision, manifest.weights_in_memory = "fp32", "prepacked"
        write_manifest(folder / name, manifest)
    (folder / "tied").mkdir()
    head = helper.make_node("MatMul", ["x", "copy"], ["logits"])
    save(folder / "tied" / "model.onnx", [LOOKUP, head], {"table": table(), "copy": table().T})


def write_sources(folder: Path) -> None:
    """Write what ``export`` reads: a checkpoint and a GGUF file."""
    import models
    from gguf_files import write_gguf
    from runtime_models import byte_tokenizer
    from transformers import PreTrainedTokenizerFast

    models.transformers_model("Llama").save_pretrained(folder / "pretrained")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), pad_token="<pad>")
    tokenizer.save_pretrained(folder / "pretrained")
    (folder / "gguf").mkdir()
    path = folder / "gguf" / "model.gguf"
    write_gguf(path, tables=None, types=lambda name: "Q8_0" if name == "token_embd" else "Q4_1")


def _renew(folder: Path) -> None:
    """Let the manifest of a bundle list the files as they are."""
    import hashlib

    path = folder / "edgetie.json"
    if not path.is_file() or not path.stat().st_size:
        return
    manifest = json.loads(path.read_bytes())
    manifest["files"] = {
        file.name: {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in folder.iterdir()
        if file != path and file.is_file()
    }
    path.write_text(json.dumps(manifest), encoding="utf-8")


def _damage(kind: str, folder: Path, rng: Random) -> tuple[str, str, str]:
    """Damage an input; returns what was done, the argument for the command, and the command."""
    some: Callable[[Path, Random], str]
    if kind == "onnx":
        source = rng.choice(("bare", "tied"))
        some = rng.choice((damage_bytes, damage_model, damage_model))
        what = some(folder / source / "model.onnx", rng)
        return what, f"{source}/model.onnx", rng.choice(ALL)
    if kind == "bundle":
        source = rng.choice(("fused", "plain"))
        some = rng.choice((damage_bytes, damage_model, damage_model, damage_file))
        names = ("model.onnx", "model.onnx.data") if some is damage_bytes else ("model.onnx",)
        if some is damage_file:
            names = tuple(sorted(file.name for file in (folder / source).iterdir()))
        what = some(folder / source / rng.choice(names), rng)
        if rng.random() < 0.7:
            _renew(folder / source)
        return what, source, rng.choice(ALL)
    if kind == "manifest":
        source = rng.choice(("fused", "plain"))
        some = rng.choice((damage_json, damage_json, damage_json, damage_bytes))
        return some(folder / source / "edgetie.json", rng), source, rng.choice(ALL)
    if kind == "tokenizer":
        source = rng.choice(("fused", "bare"))
        files = ["tokenizer.json", "tokenizer.json", "tokenizer_config.json", "config.json"]
        file = folder / source / rng.choice(files[: 3 if source == "fused" else 4])
        what = rng.choice((damage_json, damage_json, damage_bytes))(file, rng)
        if source == "fused":
            _renew(folder / source)
        return what, source, rng.choice(TEXT)
    if kind == "gguf":
        what = damage_bytes(folder / "gguf" / "model.gguf", rng, ends=2500)
        return what, "gguf/model.gguf", "export"
    assert kind == "safetensors"
    source = folder / "pretrained"
    if rng.random() < 0.5:
        some = rng.choice((damage_bytes, damage_safetensors))
        return some(source / "model.safetensors", rng), "pretrained", "export"
    names = ("config.json", "config.json", "tokenizer.json", "tokenizer_config.json",
             "generation_config.json")  # fmt: skip
    some = rng.choice((damage_json, damage_json, damage_bytes))
    return some(source / rng.choice(names), rng), "pretrained", "export"


def _run_command(arguments: list[str], folder: Path) -> NoReturn:
    """Become the command line in this process, which was forked for it."""
    os.chdir(folder / "work")
    os.environ["TMPDIR"] = str(folder / "tmp")
    tempfile.tempdir = None
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["edgetie", *arguments]
    code = 99
    try:
        from edgetie_cli.main import main

        main()
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 98
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pid: int) -> int:
    """The exit code of a process; negative if a signal ended it."""

    def stop(*_: object) -> None:
        os.killpg(pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    status = os.waitpid(pid, 0)[1]
    signal.alarm(0)
    return os.waitstatus_to_exitcode(status)


def _temporary(folder: Path) -> list[str]:
    """What is left of temporary files, but for those that ONNX Runtime and torch always write."""
    names = (path.name for path in (folder / "tmp").iterdir())
    return [name for name in names if name != ".ses" and not name.startswith("torchinductor_")]


def _problems(code: int, folder: Path, before: set[Path]) -> list[str]:
    """What a user would not expect of a command that ended so."""
    out, err = ((folder / name).read_text(errors="replace") for name in ("out", "err"))
    wrong = []
    if code not in (0, 1, 2):
        wrong.append(f"exit code {code}")
    if "Traceback" in err or "edgetie: unexpected" in err:
        wrong.append("unexpected error")
    lines = err.strip().splitlines()
    if code == 2 and (len(lines) != 1 or not lines[0].startswith("edgetie: ") or out):
        wrong.append("more than one line")
    if code != 2 and not all(line.startswith("edgetie: ") for line in lines):
        wrong.append("words of a library")
    after = set((folder / "work").rglob("*"))
    if (code != 0 and after != before) or _temporary(folder):
        left = sorted(str(path.relative_to(folder)) for path in after - before)
        wrong.append(f"left behind: {left[:3]} {_temporary(folder)[:3]}")
    return [f"{text}: {err.strip()[-400:]}" for text in wrong]


def run_one(kind: str, seed: str, inputs: Path) -> tuple[int, list[str]]:
    """Damage an input and give it to a command; returns the exit code and what was wrong."""
    rng = Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "tmp").mkdir()
        shutil.copytree(inputs, folder / "work")
        try:
            what, argument, command = _damage(kind, folder / "work", rng)
        except UnicodeError:  # protobuf does not write a text that another damage broke
            return 0, []
        arguments = [part.format(argument) for part in COMMANDS[command]]
        arguments += [] if command in ("compile",) else ["--quiet"]
        before = set((folder / "work").rglob("*"))
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            _run_command(arguments, folder)
        code = _wait(pid)
        found = _problems(code, folder, before)
        if os.environ.get("EDGETIE_FUZZ_SHOW"):
            print(
                code, command, what, "|", (folder / "err").read_text(errors="replace").strip()[:160]
            )
        return code, [f"{kind} {seed}: {command}: {what}: {text}" for text in found]


def _in_child(function: Callable[[Path], None], folder: Path) -> None:
    """Run what starts threads in another process: this one is to fork."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function(folder)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def fuzz(seed: int, runs: int, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Try ``runs`` damaged inputs of each kind."""
    import onnxruntime  # noqa: F401  (imported once, not in every process)

    import edgetie.harness.accuracy.check
    import edgetie.quantize.quantizer
    import edgetie.repair

    wrong: list[str] = []
    codes: Counter[int] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if {"gguf", "safetensors"} & {*kinds}:
            import edgetie.export.exporter  # noqa: F401

            _in_child(write_sources, folder)
        if {*kinds} - {"gguf", "safetensors"}:
            _in_child(write_inputs, folder)
        for index in range(runs):
            for kind in kinds:
                code, found = run_one(kind, f"{seed}/{index}", folder)
                codes[code] += 1
                wrong += found
                for text in found:
                    print(text, file=sys.stderr, flush=True)
    return {"runs": codes.total(), "codes": dict(codes), "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(fuzz(int(sys.argv[1]), int(sys.argv[2]), tuple(sys.argv[3:]))))
