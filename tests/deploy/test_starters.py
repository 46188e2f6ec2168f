"""Starters on a small model: prompts and answers that the real one does not make."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import models
import pytest
from runtime_models import byte_tokenizer
from starters import (
    SUPPORT,
    Turn,
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
from tokenizers.processors import TemplateProcessing

from edgetie import Tokenizer, deploy_model, open_bundle
from edgetie.downloads import cache_directory
from edgetie.errors import BundleError
from edgetie.export.exporter import export_model
from edgetie.quantize.quantizer import quantize_model
from edgetie.runtime.decoding.sampling import Sampling
from edgetie.runtime.decoding.text_generation import generate_text
from edgetie.runtime.session import open_session
from edgetie.sources.source import Source

__all__ = ["headers", "library", "modules"]

pytestmark = pytest.mark.slow

PROMPT = "a small prompt"
LONGEST = 128
RUN_HERE = ("python", "c", "node")
OLD_RUNTIME = "1.23.2"
PARTS = (
    "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}<{{ p.text }}>"
    "{% endif %}{% endfor %}{% endfor %}!"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a chat template, tokens in front of a text and behind it, and one that ends
    answers but is like any other.
    """
    tokenizer = byte_tokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )

    def save(target: Path) -> None:
        tokenizer.save(str(target / "tokenizer.json"))

    model = models.transformers_model("Llama")
    directory = tmp_path_factory.mktemp("starters") / "fp32"
    export_model(Source("transformers", 'a "small" <model>', model, model.config, save), directory)
    return directory


def answer(
    bundle: Path, prompt: str, count: int, provider: str = "edgetie"
) -> tuple[list[int], str]:
    """Tokens and text of ``generate``."""
    opened = open_bundle(bundle)
    tokenizer = Tokenizer.from_bundle(opened)
    ids = [tokenizer.encode(prompt)]
    session = open_session(opened, provider=provider)
    *_, last = generate_text(session, tokenizer, ids, max_new_tokens=count)
    assert last.completion is not None
    return last.completion.tokens, last.completion.text


def stopping(base: Path, folder: Path) -> Path:
    """The model, ended by the third token of its answer."""
    token = answer(base, PROMPT, 3)[0][-1]
    manifest = json.loads((base / "edgetie.json").read_text())
    manifest["signature"]["eos_token_ids"] = [token]
    shutil.copytree(base, folder)
    (folder / "edgetie.json").write_text(json.dumps(manifest))
    return folder


def refused(command: list[object], folder: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True)
    assert done.returncode == 1
    return done.stderr.decode()


def commands(target: str, bundle: Path, folder: Path, library: Path, modules: Path) -> list[object]:
    """What runs a starter, which is made."""
    if target == "node":
        starter(bundle, target, folder, modules)
        return ["node", "app.mjs"]
    deploy_model(bundle, target, folder)
    if target == "c":
        build(folder, library)
    return [sys.executable, "app.py"] if target == "python" else ["./app"]


@pytest.mark.parametrize("target", RUN_HERE)
def test_a_base_model_answers_as_generate_does(
    base: Path, library: Path, modules: Path, tmp_path: Path, target: str
) -> None:
    bundle = stopping(base, tmp_path / "bundle")
    tokens, text = answer(bundle, PROMPT, 20, "cpu" if target == "node" else "edgetie")
    assert len(tokens) < 20
    app = tmp_path / "app"
    command = commands(target, bundle, app, library, modules)
    options = ["--max-new-tokens", "20"]
    done = subprocess.run(
        [*map(str, command), PROMPT, *options], cwd=app, capture_output=True, text=True, check=True
    )
    assert done.stdout.rstrip("\n") == text.rstrip("\n")
    assert done.stderr.startswith("app: run by edgetie (" if target != "node" else "")
    said = refused([*command, "a" * LONGEST, *options], app)
    assert said == f"app: the prompt has {LONGEST + 2} tokens, the model takes {LONGEST}\n"
    for wrong in (["--temperature", -1], ["--top-p", 2], ["--max-new-tokens", 0]):
        assert str(wrong[0])[2:].replace("-", "_") in refused([*command, PROMPT, *wrong], app)


def converse(
    target: str, app: Path, prompts: list[str], *,
    most: int = 20, temperature: float = 0, seed: int = 0, stop: str = "",
) -> list[Turn]:  # fmt: skip
    """Hold a conversation with a starter that :func:`commands` made."""
    if target == "python":
        options = {"max_new_tokens": most, "temperature": temperature, "seed": seed}
        return in_python(app, prompts, stop_strings=[stop], **options)[1]
    command = {"c": ["./conversation"], "node": ["node", SUPPORT / "conversation.mjs"]}[target]
    return read_turns(run([*command, most, temperature, seed, stop, *prompts], app))


@pytest.fixture(scope="module")
def apps(
    base: Path, library: Path, modules: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The starters that run here, of the model with a chat template of brackets."""
    folder = tmp_path_factory.mktemp("apps")
    bundle = Path(shutil.copytree(base, folder / "bundle"))
    template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    (bundle / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    for target in RUN_HERE:
        commands(target, bundle, folder / target, library, modules)
    return {name: folder / name for name in ("bundle", *RUN_HERE)}


@pytest.mark.parametrize("target", RUN_HERE)
def test_a_turn_reads_only_what_the_cache_lacks(apps: dict[str, Path], target: str) -> None:
    prompts = ["time", "assistant", "question"]  # random weights write characters after these
    wanted = expected(apps["bundle"], prompts, 8, provider="cpu")
    turns = converse(target, apps[target], prompts, most=8)
    assert [turn.tokens for turn in turns] == [turn.tokens for turn in wanted]
    assert turns[0].read == wanted[0].read
    for turn, fresh in zip(turns[1:], wanted[1:], strict=True):
        assert turn.read < fresh.read


@pytest.mark.parametrize("target", RUN_HERE)
def test_the_oldest_turns_are_forgotten_before_the_context_ends(
    apps: dict[str, Path], target: str
) -> None:
    prompts = ["a" * 40, "b" * 40, "c" * 60]
    turns = converse(target, apps[target], prompts, most=4)
    assert turns[-1].tokens == expected(apps["bundle"], prompts[-1:], 4, "cpu")[0].tokens
    (whole,) = converse(target, apps[target], ["b" * (LONGEST - 10)], most=60)
    assert len(whole.tokens) == LONGEST - (LONGEST - 8) + 1  # up to the end of its context


@pytest.mark.parametrize("target", RUN_HERE)
def test_sampling_is_repeatable_and_varies_with_the_seed(
    base: Path, apps: dict[str, Path], target: str
) -> None:
    first, again, other = (
        converse(target, apps[target], ["once"], temperature=2.0, seed=seed)[0].tokens
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert first != converse(target, apps[target], ["once"])[0].tokens


def test_seeds_draw_the_same_tokens_as_generate_or_in_both_languages(
    apps: dict[str, Path],
) -> None:
    for seed in (3, 4):
        options = {"temperature": 1.5, "seed": seed}
        in_c, in_node = (converse(t, apps[t], ["once"], **options)[0] for t in ("c", "node"))
        assert in_c.tokens == in_node.tokens
        session = open_session(apps["bundle"], provider="edgetie")
        tokenizer = Tokenizer.from_bundle(session.bundle)
        ids = tokenizer.encode("<once>", add_special_tokens=False)
        *_, last = generate_text(
            session, tokenizer, [ids], max_new_tokens=20, sampling=Sampling(1.5), seed=seed
        )
        assert last.completion is not None
        (in_python,) = converse("python", apps["python"], ["once"], **options)
        assert in_python.tokens == last.completion.tokens


@pytest.mark.parametrize("target", RUN_HERE)
def test_stop_strings_end_an_answer_and_stay_out_of_it(apps: dict[str, Path], target: str) -> None:
    (whole,) = converse(target, apps[target], ["time"], most=8)
    stop = whole.text[1:4]
    (cut,) = converse(target, apps[target], ["time"], most=8, stop=stop)
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert len(cut.tokens) < len(whole.tokens)
    never = stop + "\x7f"  # its beginning comes
    (same,) = converse(target, apps[target], ["time"], most=8, stop=never)
    assert same == whole


@pytest.fixture(scope="module")
def old_runtime() -> Path:
    """A folder with the package of an ONNX Runtime that has no kernels in plugins."""
    folder = cache_directory() / f"onnxruntime-{OLD_RUNTIME}"
    if not (folder / "onnxruntime" / "capi").is_dir():
        wanted = f"onnxruntime=={OLD_RUNTIME}"
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
        run([*pip, "--target", folder, wanted], folder.parent)
    return folder


@pytest.mark.parametrize("target", ["python", "c"])
def test_a_runtime_without_kernels_in_plugins_runs_all_nodes(
    base: Path, library: Path, old_runtime: Path, tmp_path: Path, target: str
) -> None:
    deploy_model(base, target, tmp_path / "app")
    command, variables = [sys.executable, "app.py"], {"PYTHONPATH": str(old_runtime)}
    if target == "c":
        folder = tmp_path / "onnxruntime"
        (folder / "lib").mkdir(parents=True)
        (folder / "include").symlink_to(library / "include")
        (found,) = (old_runtime / "onnxruntime" / "capi").glob("libonnxruntime.so.*")
        for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
            (folder / "lib" / name).symlink_to(found)
        build(tmp_path / "app", folder)
        command, variables = ["./app"], {}
    done = subprocess.run(
        [*command, PROMPT, "--max-new-tokens", "5"],
        cwd=tmp_path / "app", env=os.environ | variables, capture_output=True, errors="replace",
        check=True,
    )  # fmt: skip
    assert done.stdout.rstrip("\n") == answer(base, PROMPT, 5, "cpu")[1].rstrip("\n")
    runtime = {"python": "onnxruntime", "c": "ONNX Runtime"}[target]
    assert done.stderr == (
        f"app: run by cpu: edgetie's needs {runtime} 1.24, this is {OLD_RUNTIME}\n"
    )


def test_names_are_written_so_that_programs_stay_whole(base: Path, tmp_path: Path) -> None:
    quantize_model(base, tmp_path / "plain", target="web")
    deploy_model(tmp_path / "plain", "web", tmp_path / "web")
    page = (tmp_path / "web" / "index.html").read_text("utf-8")
    assert "<title>a &quot;small&quot; &lt;model&gt;</title>" in page
    first = json.loads((tmp_path / "web" / "app.json").read_text("utf-8"))["version"]
    quantize_model(base, tmp_path / "other", scheme="int8-dynamic")
    deploy_model(tmp_path / "other", "web", tmp_path / "second")
    assert json.loads((tmp_path / "second" / "app.json").read_text("utf-8"))["version"] != first


def test_the_runtime_that_a_starter_needs_is_named(base: Path, tmp_path: Path) -> None:
    import onnxruntime

    quantize_model(base, tmp_path / "mapped", target="mobile-cpu")
    for name, ort_format in (("onnx", False), ("ort", True)):
        deploy_model(tmp_path / "mapped", "android", tmp_path / name, ort_format=ort_format)
        gradle = (tmp_path / name / "app" / "build.gradle.kts").read_text("utf-8")
        wanted = onnxruntime.__version__ if ort_format else "1.24.1"
        assert f"onnxruntime-android:{wanted}" in gradle
        assert not [f for f in (tmp_path / name).rglob("*.kts") if "{{" in f.read_text("utf-8")]


def test_templates_without_the_prompt_cannot_be_deployed(base: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(base, tmp_path / "bundle"))
    for template, good in ((PARTS, True), ("{{ messages | length }}", False)):
        (bundle / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
        if good:
            deploy_model(bundle, "python", tmp_path / "app")
            app = json.loads((tmp_path / "app" / "app.json").read_text("utf-8"))
            assert (app["before_prompt"], app["after_prompt"]) == ("<", ">!")
            continue
        with pytest.raises(BundleError, match="does not write the user's text once"):
            deploy_model(bundle, "python", tmp_path / "other")
        assert not (tmp_path / "other").exists()
