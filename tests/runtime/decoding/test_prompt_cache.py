"""Prompts whose beginning is in a file: equal tokens, and files that do not fit are refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import bag_models as bag
import models
import numpy as np
import pytest
import runtime_models as tiny
from adapter_models import IDS, AdaptedBundle
from image_starters import write_bundle as write_image_bundle

from edgetie.errors import BundleError, EdgetieError
from edgetie.export.exporter import export_model
from edgetie.quantize.quantizer import quantize_model
from edgetie.runtime.decoding.conversation import Conversation
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.decoding.prompt_cache import PromptCache
from edgetie.runtime.decoding.text_generation import Completion, generate_text
from edgetie.runtime.session import Session, open_session
from edgetie.runtime.text.tokenizer import Tokenizer

PROMPT = [35, 8, 9, 79, 32, 38, 46, 26, 11, 90, 14]
BEGINNING = PROMPT[:8]


def exported(kind: str) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        source = models.source_of(models.transformers_model(kind), kind)
        return export_model(source, path / kind).bundle.directory

    return write


def int8(path: Path) -> Path:
    quantize_model(exported("Llama")(path), path / "int8")
    return path / "int8"


def int8_cache(path: Path) -> Path:
    ids = np.random.default_rng(0).integers(3, models.VOCAB, (1, 64))
    calibration = [{"input_ids": ids, "attention_mask": np.ones_like(ids)}]
    bundle = exported("Llama")(path)
    quantize_model(bundle, path / "int8", int8_kv_cache=True, calibration=calibration)
    assert open_session(path / "int8").cache_dtype == "int8"
    return path / "int8"


WRITTEN: dict[str, Callable[[Path], Path]] = {
    "in place": tiny.write_packed,
    "growing cache": lambda path: tiny.write_packed(path) / "model.onnx",
    "of another exporter": tiny.write_plain,
}
EXPORTED: dict[str, Callable[[Path], Path]] = {
    "int8": int8,
    "int8 cache": int8_cache,
    "sliding window": exported("Mistral"),
    "recurrent and attention": exported("Lfm2"),
    "recurrent": exported("Mamba"),
}


KINDS = [*WRITTEN, *(pytest.param(kind, marks=pytest.mark.slow) for kind in EXPORTED)]


@pytest.fixture(scope="module", params=KINDS)
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    return open_session((WRITTEN | EXPORTED)[request.param](tmp_path_factory.mktemp("bundle")))


def tokens_of(session: Session, prompt: list[int], cache: PromptCache | None = None) -> list[int]:
    steps = generate(
        session, [prompt], max_new_tokens=8, stop_token_ids=frozenset(), prompt_cache=cache
    )
    return [int(step.tokens[0]) for step in steps]


def is_recurrent(session: Session) -> bool:
    return not all(tensor.grows for tensor in session.cache)


def test_tokens_are_those_of_the_whole_prompt(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "prompt.cache"
    expected = tokens_of(session, PROMPT)
    cache = PromptCache(file)
    assert tokens_of(session, [*BEGINNING, 5], cache) == tokens_of(session, [*BEGINNING, 5])
    assert cache.cached_tokens == 0, "it was written"
    written = file.read_bytes()
    for _ in range(2):
        cache = PromptCache(file)
        assert tokens_of(session, PROMPT, cache) == expected
        assert cache.cached_tokens == len(BEGINNING)
    assert tokens_of(session, [*BEGINNING, 5], cache) == tokens_of(session, [*BEGINNING, 5])
    assert cache.cached_tokens == len(BEGINNING), "the last token is read for its logits"
    assert file.read_bytes() == written


def test_a_part_of_the_file_serves_keys_and_values_alone(session: Session, tmp_path: Path) -> None:
    file, cache = tmp_path / "prompt.cache", PromptCache(tmp_path / "prompt.cache")
    tokens_of(session, [*BEGINNING, 5], cache)
    other = [*BEGINNING[:6], 77, 78, 79]
    assert tokens_of(session, other, cache) == tokens_of(session, other)
    assert cache.cached_tokens == (0 if is_recurrent(session) else 6)
    before = file.read_bytes()
    other = [*BEGINNING[:3], 77, 78, 79]
    assert tokens_of(session, other, cache) == tokens_of(session, other)
    if not is_recurrent(session):
        assert cache.cached_tokens == 3
    assert file.read_bytes() != before, "less than half of its tokens were of use"
    assert tokens_of(session, other, cache) == tokens_of(session, other)
    assert cache.cached_tokens == len(other) - 1


def test_another_process_maps_it(tmp_path: Path) -> None:
    bundle, file = tiny.write_packed(tmp_path / "bundle"), tmp_path / "prompt.cache"
    program = (
        "import sys; from edgetie import PromptCache, generate, open_session\n"
        "session, cache = open_session(sys.argv[1]), PromptCache(sys.argv[2])\n"
        f"steps = generate(session, [{PROMPT}], max_new_tokens=8, stop_token_ids=frozenset(), "
        "prompt_cache=cache)\n"
        "print([int(step.tokens[0]) for step in steps], cache.cached_tokens)"
    )
    command = [sys.executable, "-c", program, str(bundle), str(file)]
    expected = tokens_of(open_session(bundle), PROMPT)
    for cached in (0, len(PROMPT) - 1):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == f"{expected} {cached}\n"


def test_the_file_has_a_common_format(tmp_path: Path) -> None:
    from safetensors import safe_open

    session = open_session(tiny.write_packed(tmp_path / "bundle"))
    PromptCache(tmp_path / "prompt.cache").prefill(Decoder(session, 1, 16), PROMPT)
    decoder = Decoder(session, 1, 16)
    decoder.prefill(np.array([PROMPT[:-1]]))
    with safe_open(tmp_path / "prompt.cache", "np") as file:
        assert file.get_tensor("tokens").tolist() == PROMPT[:-1]
        for name, values in decoder.state().items():
            np.testing.assert_array_equal(file.get_tensor(name), values)
        assert file.metadata()["precision"] == "fp32"


def test_a_prompt_of_one_token_writes_nothing(tmp_path: Path) -> None:
    session = open_session(tiny.write_packed(tmp_path / "bundle"))
    assert tokens_of(session, [7], PromptCache(tmp_path / "a")) == tokens_of(session, [7])
    assert not (tmp_path / "a").exists()


def refusal(session: Session, file: Path) -> str:
    before = file.read_bytes()
    with pytest.raises(BundleError) as caught:
        tokens_of(session, PROMPT, PromptCache(file))
    assert file.read_bytes() == before, "a file that is refused stays"
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    assert message.endswith("; delete it or name another file")
    return message


def test_another_model_refuses_the_file(tmp_path: Path) -> None:
    bundle, file = tiny.write_packed(tmp_path / "bundle"), tmp_path / "prompt.cache"
    tokens_of(open_session(bundle), PROMPT, PromptCache(file))
    shutil.copytree(bundle, tmp_path / "moved")
    cache = PromptCache(file)
    tokens_of(open_session(tmp_path / "moved"), PROMPT, cache)
    assert cache.cached_tokens == len(PROMPT) - 1, "it is the same model"

    quantize_model(bundle, tmp_path / "int8")
    message = refusal(open_session(tmp_path / "int8"), file)
    assert "another model (precision: fp32, here int8)" in message

    changed = tmp_path / "changed"
    tiny.write_packed(changed, last_before_head=False)
    assert "another model (weights: " in refusal(open_session(changed), file)


def test_another_adapter_refuses_the_file(adapted_bundle: AdaptedBundle, tmp_path: Path) -> None:
    session, file = open_session(adapted_bundle.directory), tmp_path / "prompt.cache"
    session.use_adapter("small")
    cache = PromptCache(file)
    tokens = tokens_of(session, IDS, cache)
    assert tokens_of(session, IDS, cache) == tokens
    assert cache.cached_tokens == len(IDS) - 1
    session.use_adapter("large")
    assert "another model (adapter: small, here large)" in refusal(session, file)
    session.use_adapter(None)
    assert "another model (adapter: small, here None)" in refusal(session, file)


def test_a_changed_bare_file_refuses_the_file(tmp_path: Path) -> None:
    bundle, file = tiny.write_plain(tmp_path / "bundle"), tmp_path / "prompt.cache"
    tokens_of(open_session(bundle), PROMPT, PromptCache(file))
    data = bundle / "model.onnx.data"
    values = bytearray(data.read_bytes())
    values[100] ^= 1
    data.write_bytes(values)
    assert "another model (weights: " in refusal(open_session(bundle), file)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    session, file = open_session(tiny.write_packed(tmp_path / "bundle")), tmp_path / "prompt.cache"
    tokens_of(session, PROMPT, PromptCache(file))
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    cuts = [0, 1, 7, 8, 9, header - 1, header, header + 1, len(whole) - 1]
    damaged = [whole[:size] for size in (*cuts, *rng.integers(1, len(whole), 20))]
    damaged += [whole + b"\0", b"\0" * 100, b"\xff" * 100, whole[8:], b"[" * 100000]
    for place in (*range(8), *rng.integers(8, header, 100), *rng.integers(header, len(whole), 100)):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(changed))
    for content in damaged:
        file.write_bytes(content)
        try:
            tokens_of(session, PROMPT, PromptCache(file))
        except BundleError:
            refusal(session, file)
        else:  # what the header tells of a model in words
            assert content[header:] == whole[header:]
            metadata, expected = (json.loads(each[8:header]) for each in (content, whole))
            assert metadata["__metadata__"].pop("weights") == expected["__metadata__"]["weights"]


@pytest.mark.parametrize("count", [-1, 0, 1.0, True, None, "x", [], 10**30, 2**31])
def test_impossible_counts_are_refused(count: object, tmp_path: Path) -> None:
    session, file = open_session(tiny.write_packed(tmp_path / "bundle")), tmp_path / "prompt.cache"
    tokens_of(session, PROMPT, PromptCache(file))
    whole = file.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    header["tokens"]["shape"] = [count]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + size :])
    assert "is not a prompt cache, or is damaged" in refusal(session, file)


def test_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    session = open_session(tiny.write_packed(tmp_path / "bundle"))
    with pytest.raises(BundleError, match=r"cannot be read \(Is a directory\); name another file"):
        tokens_of(session, PROMPT, PromptCache(tmp_path))
    with pytest.raises(BundleError, match="cannot be written"):
        tokens_of(session, PROMPT, PromptCache(tmp_path / "absent" / "prompt.cache"))
    refusal(session, tmp_path / "bundle" / "model.onnx.data")


def test_models_and_prompts_without_such_a_cache_are_refused(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path / "prompt.cache")
    session = open_session(tiny.write_packed(tmp_path / "packed"))
    with pytest.raises(EdgetieError, match="prompt_cache: is for one prompt, not for 2"):
        list(generate(session, [PROMPT, PROMPT], max_new_tokens=2, prompt_cache=cache))
    for directory, why in (
        (bag.write_seq2seq(tmp_path / "seq2seq"), "has an encoder, which reads the prompt"),
        (bag.write_fixed(tmp_path / "fixed"), "has fixed shapes"),
        (tiny.write_plain(tmp_path / "plain", cached=False), "has no keys and values"),
    ):
        with pytest.raises(BundleError, match=f"{why}.*; generate without a prompt cache"):
            list(generate(open_session(directory), [[5]], max_new_tokens=2, prompt_cache=cache))
    assert not cache.path.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "is_causal"), [("llava", True), ("paligemma", False)])
def test_models_that_read_images_are_given_texts(
    kind: str, is_causal: bool, tmp_path: Path
) -> None:
    session = open_session(write_image_bundle(tmp_path / kind, kind))
    cache = PromptCache(tmp_path / "prompt.cache")
    if is_causal:
        for cached in (0, len(PROMPT) - 1):
            assert tokens_of(session, PROMPT, cache) == tokens_of(session, PROMPT)
            assert cache.cached_tokens == cached
        return
    with pytest.raises(BundleError, match="may let the tokens of a prompt see those that follow"):
        tokens_of(session, PROMPT, cache)


def answer(bundle: Path, cache: PromptCache | None, questions: list[str]) -> list[Completion]:
    session = open_session(bundle)
    tokenizer = Tokenizer.from_bundle(session.bundle)
    conversation = Conversation(session, tokenizer, system="once", prompt_cache=cache)
    completions = []
    for question in questions:
        *_, last = conversation.ask(question, max_new_tokens=3)
        assert last.completion is not None
        completions.append(last.completion)
    return completions


def test_a_conversation_begins_with_the_system_message_of_a_file(tmp_path: Path) -> None:
    bundle, file = tiny.write_chat_bundle(tmp_path / "bundle"), tmp_path / "system.cache"
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    (bundle / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer = Tokenizer.from_bundle(open_session(bundle).bundle)
    beginning = len(tokenizer.encode("system:once;user:", add_special_tokens=False))
    for cached, questions in ((0, ["is", "a"]), (beginning, ["the"]), (beginning, ["is", "a"])):
        completions = answer(bundle, PromptCache(file), questions)
        expected = answer(bundle, None, questions)
        assert [each.text for each in completions] == [each.text for each in expected]
        assert completions[0].cached_tokens == cached
        assert completions[0].prompt_tokens == expected[0].prompt_tokens


def test_texts_tell_how_much_was_cached(tmp_path: Path) -> None:
    session = open_session(tiny.write_chat_bundle(tmp_path / "bundle"))
    tokenizer = Tokenizer.from_bundle(session.bundle)
    for cached in (0, 9):
        cache = PromptCache(tmp_path / "prompt.cache")
        *_, last = generate_text(
            session, tokenizer, [PROMPT[:10]], max_new_tokens=2, prompt_cache=cache
        )
        assert last.completion is not None
        assert (last.completion.cached_tokens, last.completion.prompt_tokens) == (cached, 10)
