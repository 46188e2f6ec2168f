"""The command line against input that is wrong: one line on stderr, exit code 2, no traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import psutil
import pytest
import torch
from command_line import (
    MAIN,
    edgetie,
    refused,
)
from onnx import TensorProto, helper, numpy_helper
from runtime_models import byte_tokenizer, write_chat_bundle

from edgetie.errors import SourceError
from edgetie.quantize.quantizer import quantize_model
from edgetie.sources.load import load_source


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_chat_bundle(tmp_path / "bundle")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers directory with a tokenizer."""
    from transformers import PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("pretrained") / "llama"
    models.transformers_model("Llama").save_pretrained(directory)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), pad_token="<pad>")
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def source(pretrained: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return shutil.copytree(pretrained, tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(data), encoding="utf-8")


COMMANDS = (
    ("quantize", "{}", "--output", "out", "--json", "--quiet"),
    ("inspect", "{}", "--json", "--quiet"),
    ("check", "{}", "--reference", "{}", "--json", "--quiet"),
    ("bench", "{}", "--repeat", "1", "--json", "--quiet"),
    ("generate", "{}", "--prompt", "hello", "--json"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_external_data_missing(bundle: Path, command: tuple[str, ...]) -> None:
    (bundle / "model.onnx.data").unlink()
    done = edgetie(*(part.format("bundle") for part in command), cwd=bundle.parent)
    refused(done, "model.onnx.data", "missing")
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_external_data_truncated(bundle: Path, command: tuple[str, ...]) -> None:
    os.truncate(bundle / "model.onnx.data", 1000)
    done = edgetie(*(part.format("bundle") for part in command), cwd=bundle.parent)
    refused(done, "model.onnx.data: 1,000 bytes", "truncated")
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_file_that_is_no_model(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "noise.onnx").write_bytes(np.random.default_rng(0).bytes(4000))
    done = edgetie(*(part.format("noise.onnx") for part in command), cwd=tmp_path)
    refused(done, "noise.onnx: not ")


@pytest.mark.parametrize("command", COMMANDS[2:4], ids=lambda command: command[0])
def test_model_that_is_no_decoder(tmp_path: Path, command: tuple[str, ...]) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [value("x", TensorProto.FLOAT, [1, 64])],
        [value("y", TensorProto.FLOAT, [1, 64])],
        [numpy_helper.from_array(np.ones((64, 64), np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=10),
        str(tmp_path / "product.onnx"),
    )
    done = edgetie(*(part.format("product.onnx") for part in command), cwd=tmp_path)
    refused(done, "product.onnx", "only decoders")


def test_inspect_finds_a_changed_byte(bundle: Path) -> None:
    data = bytearray((bundle / "model.onnx.data").read_bytes())
    data[100] ^= 1
    (bundle / "model.onnx.data").write_bytes(data)
    refused(
        edgetie("inspect", "bundle", "--quiet", cwd=bundle.parent), "model.onnx.data", "SHA-256"
    )


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("check", "{}", "--reference", "{}", "--max-kl", "nan"), ("--max-kl", "NaN")),
        (("check", "{}", "--reference", "{}", "--min-top1", "98"), ("write 0.98 or 98%",)),
        (("check", "{}", "--reference", "{}", "--threads", "0"), ("--threads", "--help")),
        (("check", "{}", "--reference", "{}", "--text", "nowhere"), ("nowhere",)),
        (("check", "{}", "--reference", "{}", "--text", "noise"), ("noise", "UTF-8")),
        (("check", "{}", "--reference", "nowhere"), ("nowhere",)),
        (("generate", "{}", "--prompt", "x", "--max-new-tokens", "0"), ("--max-new-tokens",)),
        (("generate", "{}", "--prompt", "x", "--threads", "100000"), ("--threads",)),
        (("generate", "{}", "--prompt", "x", "--temperature", "nan"), ("NaN",)),
        (("generate", "{}", "--prompt", "", "--no-chat"), ("prompt", "empty")),
        (("generate", "{}", "--prompt", "word " * 100), ("48 tokens",)),
        (("generate", "{}", "--prompt", "x", "--provider", "cuda"), ("cuda",)),
        (("generate", "{}", "--prompt", "x", "--provider", "zorp"), ("zorp", "cpu")),
        (("inspect", "{}", "--provider", "zorp"), ("zorp",)),
        (("bench", "{}", "--provider", "zorp"), ("zorp",)),
        (("bench", "{}", "--plot", "no/where.png"), ("--plot", "where.png")),
        (("quantize", "{}", "--output", "notes"), ("notes", "never replaced")),
        (("quantize", "{}", "--output", "notes", "--force"), ("notes", "never replaced")),
        (("quantize", "{}", "--output", "noise/below"), ("noise", "cannot be written")),
        (("quantize", "{}", "--output", "x" * 300), ("name too long",)),
        (("inspect", "nowhere", "--json"), ("nowhere: no such file",)),
        (("nonsense",), ("nonsense", "--help")),
    ],
    ids=lambda value: " ".join(value)[:60],
)  # fmt: skip
def test_usage(bundle: Path, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    notes = bundle.parent / "notes"
    notes.mkdir()
    (notes / "thesis.txt").write_text("x", encoding="utf-8")
    (bundle.parent / "noise").write_bytes(b"\xff\xfe\x00")
    before = sorted(path.name for path in bundle.parent.rglob("*"))
    quiet = () if arguments[0] in ("generate", "nonsense") else ("--quiet",)
    done = edgetie(*(part.format("bundle") for part in arguments), *quiet, cwd=bundle.parent)
    if "cuda" in arguments and done.returncode == 0:
        pytest.skip("there is a GPU")
    refused(done, *parts)
    assert sorted(path.name for path in bundle.parent.rglob("*")) == before


def test_quantized_model_is_not_quantized_again(bundle: Path) -> None:
    quantize_model(bundle, bundle.parent / "int8")
    done = edgetie("quantize", "int8", "-o", "out", "--quiet", cwd=bundle.parent)
    refused(done, "quantized already")


@pytest.mark.slow
def test_reader_that_leaves_and_output_that_is_full(bundle: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", MAIN, "inspect", "bundle", "--json", "--quiet"]
    done = subprocess.run(
        command, cwd=bundle.parent, stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")  # as of SIGPIPE; 1 is a failed check
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w", encoding="utf-8") as full:
            done = subprocess.run(
                command, cwd=bundle.parent, stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert done.returncode == 2
        assert done.stderr.startswith("edgetie: writing: No space left")
        missing = [sys.executable, "-c", MAIN, "inspect", "nothing"]
        with Path("/dev/full").open("w", encoding="utf-8") as full:
            assert subprocess.run(missing, cwd=bundle.parent, stderr=full).returncode == 2


def test_a_code_page_that_lacks_signs_of_tables(bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "inspect", "bundle"],
        cwd=bundle.parent,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
    )
    assert done.returncode == 0
    assert b"tied weight" in done.stdout


def test_error_nobody_thought_of(bundle: Path) -> None:
    code = f"import edgetie.bundle.bundle as b; b.open_bundle = lambda *_, **__: 1 / 0\n{MAIN}"
    command = [sys.executable, "-c", code, "generate", "bundle", "--prompt", "x"]
    run: dict[str, Any] = {"cwd": bundle.parent, "capture_output": True, "text": True}
    done = subprocess.run(command, **run)
    assert done.returncode == 2
    assert "unexpected ZeroDivisionError" in done.stderr
    assert "Traceback" not in done.stderr
    shown = os.environ | {"EDGETIE_TRACEBACK": "1"}
    done = subprocess.run(command, **run, env=shown)
    assert "Traceback" in done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_interrupted_bench_takes_its_worker_along(bundle: Path, number: str, code: int) -> None:
    command = [sys.executable, "-c", MAIN, "bench", "bundle", "--repeat", "1000", "--quiet"]
    command += ["--prompt-tokens", "8", "--new-tokens", "8"]
    process = subprocess.Popen(
        command,
        cwd=bundle.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    parent = psutil.Process(process.pid)
    while not (workers := parent.children()) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(getattr(signal, number))
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert stdout == ""
    assert stderr.strip() == "edgetie: interrupted; nothing was half-written"
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []


def unlink_weights(source: Path) -> None:
    (source / "model.safetensors").unlink()


def pickle_weights(source: Path) -> None:
    unlink_weights(source)
    torch.save({"weight": torch.zeros(1)}, source / "pytorch_model.bin")


def bring_code(source: Path) -> None:
    edit(source / "config.json", auto_map={"AutoModelForCausalLM": "own.Model"})
    (source / "own.py").write_text("raise SystemExit('it ran')", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (bring_code, "trust_remote_code=True"),
        (lambda d: edit(d / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.T", None]}),
         "trust_remote_code=True"),
        (pickle_weights, "allow_pickle=True"),
        (unlink_weights, "no weights"),
        (lambda d: os.truncate(d / "model.safetensors", 100_000), "cannot be loaded"),
        (lambda d: (d / "config.json").write_text('{"a": '), "not valid JSON"),
        (lambda d: (d / "config.json").write_text("[1]"), "not a JSON object"),
        (lambda d: (d / "config.json").write_bytes(b"\xff\xfe"), "not valid JSON"),
        (lambda d: os.truncate(d / "tokenizer.json", 100), r"tokenizer\.json: not valid JSON"),
        (lambda d: (d / "generation_config.json").write_text("{"), "generation_config"),
        (lambda d: edit(d / "config.json", model_type="zorp"), "zorp"),
        (lambda d: edit(d / "config.json", num_hidden_layers=3), "9 weights of the model"),
        (lambda d: edit(d / "config.json", intermediate_size=96), "of another shape"),
        (lambda d: edit(d / "config.json", model_type="vit"), "type vit is not a language model"),
    ],
)  # fmt: skip
def test_directory_that_is_no_good_model(
    source: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(source)
    with pytest.raises(SourceError, match=message) as caught:
        load_source(str(source))
    assert "\n" not in str(caught.value)


def test_tokenizer_that_is_damaged_is_not_left_out(source: Path, tmp_path: Path) -> None:
    edit(source / "tokenizer.json", model={"type": "Nonsense"})
    loaded = load_source(str(source))
    with pytest.raises(SourceError, match="tokenizer cannot be loaded"):
        loaded.save_extras(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "not a GGUF file"), (b"GGML" + bytes(100), "not a GGUF"), (b"GGUF", "cannot be loaded"),
     (b"GGUF\x03\0\0\0" + b"\x01" * 200, "cannot be loaded")],
)  # fmt: skip
def test_gguf_that_is_damaged(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=message):
        load_source(str(path))


def test_directory_of_several_ggufs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(SourceError, match=r"several \.gguf files; name one of them: a\.gguf, b"):
        load_source(str(tmp_path))
    (tmp_path / "b.gguf").unlink()
    with pytest.raises(SourceError, match=r"a\.gguf"):
        load_source(str(tmp_path))


@pytest.mark.slow
def test_gguf_that_is_truncated(real_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with real_gguf.open("rb") as file:
        path.write_bytes(file.read(3_000_000))
    with pytest.raises(SourceError, match=r"cannot be loaded.*download it again"):
        load_source(str(path))


FACTORIES = """
import sys, torch
def raises(): raise RuntimeError("boom\\nsecond line")
def exits(): sys.exit(3)
def number(): return 5
def needs(argument): return argument
def empty(): return torch.nn.Identity()
class Other(torch.nn.Module):
    def __init__(self): super().__init__(); self.layer = torch.nn.Linear(3, 3)
    def forward(self, image, box): return self.layer(image)
def speaks():
    print("printed by the model"); return Other()
def nan():
    model = Other(); model.forward = lambda input_ids: model.layer(
        torch.full((*input_ids.shape, 3), float("nan"))); return model
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [("raises", "RuntimeError: boom"), ("exits", "SystemExit"), ("number", "returned int"),
     ("needs", "TypeError"), ("empty", "without parameters"), ("absent", "absent")],
)  # fmt: skip
def test_factory_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / "bad_factories.py").write_text(FACTORIES, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SourceError, match=message) as caught:
        load_source(f"bad_factories:{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "message"), [("speaks", "a few tokens"), ("nan", "NaN")])
def test_module_that_is_no_language_model(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "bad_factories.py").write_text(FACTORIES, encoding="utf-8")
    done = edgetie(
        "export", f"bad_factories:{name}", "-o", "out", "--json", "--quiet", cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stdout == ""  # what the module prints goes to stderr
    assert message in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_hub_out_of_reach(tmp_path: Path) -> None:
    proxy = {"HTTPS_PROXY": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    environment = {k: v for k, v in os.environ.items() if k.lower() != "no_proxy"} | proxy
    done = edgetie(
        "export", "someone/something", "-o", "out", "--quiet", cwd=tmp_path, env=environment
    )
    refused(done, "someone/something", "hub cannot be reached")


@pytest.mark.slow
def test_untied_model_is_exported_and_said_to_be(tmp_path: Path) -> None:
    tests = Path(models.__file__).parent
    environment = os.environ | {"PYTHONPATH": str(tests)}
    done = edgetie("export", "models:untied", "-o", "out", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "no tied weights" in done.stdout
    done = edgetie("inspect", "out", "--require-tied", "--quiet", cwd=tmp_path)
    assert done.returncode == 1
