"""The ``generate`` command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bag_models as bag
import numpy as np
import pytest
import runtime_models as tiny
from click.testing import CliRunner, Result
from wav_files import write_wav

from edgetie.bundle.bundle import open_bundle
from edgetie.bundle.manifest import write_manifest
from edgetie.errors import BundleError, EdgetieError
from edgetie.runtime.decoding.text_generation import Completion, generate_text
from edgetie.runtime.session import open_session
from edgetie.runtime.text.tokenizer import Tokenizer
from edgetie_cli.generate import command


@pytest.fixture
def chat_bundle(tmp_path: Path) -> Path:
    return tiny.write_chat_bundle(tmp_path / "bundle")


@pytest.fixture
def tokenizer(chat_bundle: Path) -> Tokenizer:
    return Tokenizer.from_bundle(open_bundle(chat_bundle))


def run(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(command, arguments, input=text)


def test_command_streams_text(chat_bundle: Path, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}])
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    *_, last = generate_text(open_session(chat_bundle), tokenizer, [ids], max_new_tokens=7)
    expected = last.completion
    assert isinstance(expected, Completion)
    done = run(str(chat_bundle), "--prompt", "hello", "--max-new-tokens", "7")
    assert done.exit_code == 0
    assert done.stdout == expected.text + "\n"
    assert f"{len(ids)} prompt tokens, 7 generated" in done.stderr
    assert run(str(chat_bundle), "--prompt", "hello", "--quiet").stderr == ""


def test_a_prompt_cache_is_written_and_read(chat_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.cache"
    options = [str(chat_bundle), "--prompt", "hello", "--max-new-tokens", "7"]
    expected = run(*options)
    cached = [*options, "--prompt-cache", str(file)]
    first, second = run(*cached), run(*cached)
    assert first.stdout == second.stdout == expected.stdout
    assert "cached" not in first.stderr
    report = json.loads(run(*cached, "--json").stdout)
    assert report["cached_tokens"] == report["prompt_tokens"] - 1
    assert f"prompt tokens ({report['cached_tokens']} cached), 7 generated" in second.stderr


@pytest.mark.parametrize(
    "others", [("--prompt", "b"), ("--image", "a.png"), ("--audio", "a.wav")], ids=str
)
def test_a_prompt_cache_is_for_one_text(chat_bundle: Path, others: tuple[str, str]) -> None:
    done = run(str(chat_bundle), "--prompt", "a", *others, "--prompt-cache", "a.cache")
    assert done.exit_code == 2
    assert "--prompt-cache goes with one --prompt, or with a conversation" in done.stderr


def test_a_prompt_cache_that_cannot_be_used(chat_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    done = run(str(chat_bundle), "--prompt", "a", "--prompt-cache", str(tmp_path / "notes.txt"))
    assert isinstance(done.exception, BundleError)
    assert "notes.txt: is not a prompt cache, or is damaged" in str(done.exception)
    assert (tmp_path / "notes.txt").read_text() == "notes"


def test_command_json(chat_bundle: Path, tokenizer: Tokenizer) -> None:
    done = run(str(chat_bundle), "--prompt", "-", "--no-chat", "--json", text="once upon\n")
    report = json.loads(done.stdout)
    assert set(report) == {
        "text", "tokens", "prompt_tokens", "cached_tokens", "tokens_per_second", "stop_reason",
        "provider", "nodes_per_provider", "proposed_tokens", "accepted_tokens",
    }  # fmt: skip
    assert report["prompt_tokens"] == len(tokenizer.encode("once upon"))
    assert report["tokens"][: len(report["tokens"])] == tiny.naive_greedy(
        tokenizer.encode("once upon"), len(report["tokens"])
    )


def test_command_counts_proposed_tokens(chat_bundle: Path) -> None:
    arguments = [str(chat_bundle), "--prompt", "small small", "--no-chat", "--max-new-tokens", "30"]
    plain = json.loads(run(*arguments, "--no-speculate", "--json").stdout)
    report = json.loads(run(*arguments, "--speculate", "--json").stdout)
    assert report["text"] == plain["text"]
    assert plain["proposed_tokens"] == 0
    assert 0 < report["accepted_tokens"] <= report["proposed_tokens"]
    counts = f"{report['accepted_tokens']} of {report['proposed_tokens']} proposed tokens accepted"
    assert counts in run(*arguments, "--speculate").stderr
    assert run(*arguments, "--speculate", "--prompt", "another").exit_code == 2


def test_command_with_several_prompts(chat_bundle: Path) -> None:
    arguments = [str(chat_bundle), "--prompt", "one", "--prompt", "two", "--max-new-tokens", "3"]
    report = json.loads(run(*arguments, "--json").stdout)
    assert len(report["completions"]) == 2
    printed = run(*arguments).stdout
    for number, completion in enumerate(report["completions"], 1):
        assert f"[{number}] {completion['text']}\n" in printed


def test_command_system_message_changes_the_prompt(chat_bundle: Path) -> None:
    plain, more = (
        json.loads(run(str(chat_bundle), "--prompt", "a", "--json", *extra).stdout)
        for extra in ([], ["--system", "Be short."])
    )
    assert more["prompt_tokens"] > plain["prompt_tokens"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-k", "3"], "--temperature"),
        (["--top-p", "0.5"], "--temperature"),
        (["--system", "x", "--no-chat"], "--system"),
        (["--prompt", "-", "--prompt", "-"], "once"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
        (["--top-p", "0"], "--top-p"),
    ],
)
def test_command_usage_errors(chat_bundle: Path, arguments: list[str], message: str) -> None:
    done = run(str(chat_bundle), "--prompt", "a", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def test_command_errors_are_one_line(tmp_path: Path) -> None:
    code = "from edgetie_cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "generate", str(tmp_path / "absent"), "--prompt", "a"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("edgetie: ")
    assert done.stderr.count("\n") == 1


def test_command_transcribes_audio(tmp_path: Path) -> None:
    directory = bag.write_speech(tmp_path / "speech")
    backend = bag.word_tokenizer()
    backend.save(str(directory / "tokenizer.json"))
    manifest = open_bundle(directory).manifest
    write_manifest(directory, manifest)
    path = str(write_wav(tmp_path / "audio.wav", np.full(1600, 0.5, np.float32)))
    options = [str(directory), "--audio", path, "--max-new-tokens", "3"]
    report = json.loads(run(*options, "--json").stdout)
    assert len(report["tokens"]) == 3
    assert run(*options, "--quiet").stdout == report["text"].lstrip() + "\n"
    both = json.loads(run(*options, "--audio", path, "--json").stdout)
    assert [each["tokens"] for each in both["completions"]] == [report["tokens"]] * 2
    for wrong, message in (
        (["--prompt", "hi"], "is a speech model: give --audio"),
        ([], "give --prompt, or --audio"),
        (["--audio", path, "--prompt", "a"], "give --prompt, or --audio"),
        (["--audio", path, "--system", "a"], "go with --prompt"),
        (["--prompt", "a", "--language", "en"], "--language goes with --audio"),
    ):
        done = run(str(directory), *wrong)
        assert done.exit_code == 2
        assert message in done.stderr


def test_command_without_a_usable_chat_template_advises_plain_text(chat_bundle: Path) -> None:
    template = "{{ raise_exception('no') }}"
    manifest = open_bundle(chat_bundle).manifest
    (chat_bundle / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_manifest(chat_bundle, manifest)
    done = run(str(chat_bundle), "--prompt", "a")
    assert isinstance(done.exception, BundleError)
    assert done.exception.advice == {"no_chat": True}


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
@pytest.mark.parametrize("options", [[], ["--choices", "yes"]])
def test_a_terminal_without_a_prompt_holds_a_conversation(
    chat_bundle: Path, options: list[str]
) -> None:
    import pty

    ours, theirs = pty.openpty()
    code = "from edgetie_cli.main import main; main()"
    command = [sys.executable, "-c", code, "generate", str(chat_bundle), "--max-new-tokens", "2"]
    command += options
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = ""
        for typed, answers in (("a\n", 0), ("b\n", 1), ("\x04", 2)):
            while shown.count("\n> ") <= answers:
                shown += os.read(ours, 4096).decode(errors="replace").replace("\r", "")
            os.write(ours, typed.encode())
        assert process.wait(60) == 0
    os.close(ours)
    assert shown.startswith("Ctrl-C stops an answer, Ctrl-D ends the conversation.\n> ")
    incomplete = "ye\nthe answer is incomplete after 2 tokens; raise --max-new-tokens"
    assert shown.count(incomplete) == (2 if options else 0)


def test_command_stops_at_a_text(chat_bundle: Path) -> None:
    arguments = [str(chat_bundle), "--prompt", "hello", "--no-chat", "--max-new-tokens", "20"]
    whole = json.loads(run(*arguments, "--json").stdout)
    end = whole["text"][3:5]
    cut = json.loads(run(*arguments, "--json", "--stop", end, "--stop", "never").stdout)
    assert cut["stop_reason"] == "stop_string"
    assert cut["text"] == whole["text"][: whole["text"].index(end)]


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--json-schema", '{"enum": ["yes", "no"]}'),
        ("--grammar", 'start: "\\"yes\\"" | "\\"no\\""'),
        ("--choices", '"yes", "no"'),
    ],
)
def test_command_answers_within_a_constraint(
    chat_bundle: Path, tmp_path: Path, option: str, text: str
) -> None:
    value = text
    if option != "--choices":
        value = str(tmp_path / "constraint")
        Path(value).write_text(text, encoding="utf-8")
    arguments = [str(chat_bundle), "--prompt", "a", option, value]
    done = run(*arguments, "--temperature", "2", "--seed", "1", "--json")
    report = json.loads(done.stdout)
    assert done.exit_code == 0
    assert report["stop_reason"] == "complete"
    assert json.loads(report["text"]) in ("yes", "no")
    several = run(*arguments, "--prompt", "b", "--quiet")
    assert [json.loads(line[4:]) in ("yes", "no") for line in several.stdout.splitlines()] == [
        True,
        True,
    ]


@pytest.mark.parametrize("as_json", [False, True])
def test_command_fails_if_a_constrained_answer_is_incomplete(
    chat_bundle: Path, as_json: bool
) -> None:
    arguments = [str(chat_bundle), "--prompt", "a", "--choices", "yes,no", "--max-new-tokens", "1"]
    done = run(*arguments, *["--json"] * as_json)
    assert done.exit_code == 1
    assert "the answer is incomplete after 1 tokens; raise --max-new-tokens" in done.stderr
    if as_json:
        assert json.loads(done.stdout)["stop_reason"] == "length"


@pytest.mark.parametrize(
    ("option", "content", "message"),
    [
        ("--json-schema", b"{", "file: not JSON (Expecting property name"),
        ("--json-schema", b"[" * 100_000, "file: not JSON (maximum recursion"),
        ("--json-schema", b"\xff", "file: not UTF-8 text"),
        (
            "--json-schema",
            b'{"not": {}}',
            'file: llguidance cannot apply it (Unimplemented keys: ["',
        ),
        ("--grammar", b"start: x", "file: llguidance cannot apply it (at 1(8): unknown name"),
        ("--grammar", b"", "file: not a grammar"),
        ("--json-schema", None, "file: No such file"),
        ("--choices", None, "--choices a,,b: must be a list of texts that are not empty"),
    ],
)
def test_command_refuses_constraints_in_one_line(
    chat_bundle: Path, tmp_path: Path, option: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    value = "a,,b" if option == "--choices" else str(path)
    code = "from edgetie_cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "generate", str(chat_bundle), "--prompt", "a", option, value],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_command_takes_one_constraint_without_stop_texts(chat_bundle: Path) -> None:
    start = [str(chat_bundle), "--choices", "a,b"]
    for arguments, message in (
        (["--prompt", "a", "--grammar", "x"], "only one of"),
        (["--audio", "a.wav"], "go with --prompt"),
    ):
        done = run(*start, *arguments)
        assert done.exit_code == 2
        assert message in done.stderr
    done = run(*start, "--prompt", "a", "--stop", "x")
    assert isinstance(done.exception, EdgetieError)
    assert done.exception.parameter == "stop_strings"


def test_without_a_terminal_a_prompt_is_needed(chat_bundle: Path) -> None:
    done = run(str(chat_bundle))
    assert done.exit_code == 2
    assert "give --prompt" in done.stderr
