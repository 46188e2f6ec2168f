"""Tokenizing, chat templates and streaming text, against transformers' own tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_models as tiny
import tokenizers
from tokenizers import decoders, models, normalizers

from edgetie.bundle.bundle import open_bundle
from edgetie.errors import BundleError
from edgetie.runtime.text.tokenizer import Detokenizer, Tokenizer, pad

TEXTS = [
    "Hello there, user!",
    "  two  spaces\nand\ta tab ",
    "naïve café ¿qué? — 日本語 👩‍👩‍👧 🏳️‍🌈",
    "",
    "<|im_start|>user\nspecial tokens in text<|im_end|>",
]
MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "<b>Hi</b> & 'bye'"},
    {"role": "assistant", "content": "Hello\n"},
    {"role": "user", "content": "日本?"},
]
TEMPLATES = {
    "plain": tiny.CHAT_TEMPLATE,
    "special tokens": "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{{ unk_token }}",
    "loop controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{{ m.content }}{% break %}{% endfor %}",
    "tojson": "{{ messages | tojson }}|{{ messages[0] | tojson(indent=2) }}",
    "blocks": "{% for m in messages %}\n    {% if true %}\n  {{ m.role }}\n    {% endif %}\n"
    "{% endfor %}\n",
    "generation": "{% for m in messages %}{% generation %}{{ m.content | trim }}{% endgeneration %}"
    "{% endfor %}{% if add_generation_prompt %}>{% endif %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}{% if tools %}tools{% endif %}{{ strftime_now('%Y') }}",
}


def by_transformers(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture
def bundle_directory(tmp_path: Path) -> Path:
    return tiny.write_chat_bundle(tmp_path / "bundle")


def test_a_text_without_tokens_is_refused() -> None:
    backend = tokenizers.Tokenizer(models.WordPiece({"a": 0}, unk_token="[UNK]"))
    tokenizer = Tokenizer(backend, {}, None)
    assert tokenizer.encode("a") == [0]
    with pytest.raises(BundleError, match=r"tokenizer\.json: cannot read the text \(WordPiece"):
        tokenizer.encode("b")


def streamed(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.add(token) for token in ids), detokenizer.finish()]


def test_encode_and_decode_as_transformers(bundle_directory: Path) -> None:
    ours, theirs = Tokenizer.from_bundle(open_bundle(bundle_directory)), by_transformers(
        bundle_directory
    )  # fmt: skip
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)


def test_batches_are_padded_on_the_left_as_transformers(bundle_directory: Path) -> None:
    theirs = by_transformers(bundle_directory)
    theirs.padding_side = "left"
    expected = theirs(TEXTS, padding=True, return_tensors="np")
    tokenizer = Tokenizer.from_bundle(open_bundle(bundle_directory))
    ids, mask = pad([tokenizer.encode(text) for text in TEXTS])
    assert ids.dtype == mask.dtype == np.int64
    assert (ids == np.where(mask, expected["input_ids"], 0)).all()
    assert (mask == expected["attention_mask"]).all()


def test_padding_and_truncation_saved_in_the_file_are_ignored(bundle_directory: Path) -> None:
    path = bundle_directory / "tokenizer.json"
    backend = tokenizers.Tokenizer.from_file(str(path))
    expected = backend.encode("the user said hello there").ids
    backend.enable_truncation(3)
    backend.enable_padding(length=64)
    backend.save(str(path))
    manifest = bundle_directory / "edgetie.json"
    manifest.unlink()
    tokenizer = Tokenizer.from_bundle(open_bundle(bundle_directory))
    assert tokenizer.encode("the user said hello there") == expected


@pytest.mark.parametrize("where", ["file", "config", "named in config"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates_as_transformers(bundle_directory: Path, name: str, where: str) -> None:
    template = TEMPLATES[name]
    file, config = (
        bundle_directory / each for each in ("chat_template.jinja", "tokenizer_config.json")
    )
    if where == "file":
        file.write_text(template, encoding="utf-8")
    else:
        file.unlink()
        data = json.loads(config.read_text(encoding="utf-8"))
        named = [{"name": "default", "template": template}, {"name": "rag", "template": "no"}]
        data["chat_template"] = template if where == "config" else named
        config.write_text(json.dumps(data), encoding="utf-8")
    ours, theirs = Tokenizer.from_bundle(open_bundle(bundle_directory)), by_transformers(
        bundle_directory
    )  # fmt: skip
    for prompt in (True, False):
        expected = theirs.apply_chat_template(
            MESSAGES, tokenize=False, add_generation_prompt=prompt
        )
        assert ours.apply_chat_template(MESSAGES, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"extra_special_tokens": {"turn_token": "<turn>", "image_token": "<image>"}},
        {"turn_token": "<turn>", "image_token": "<image>", "add_bos_token": True},
        {"extra_special_tokens": ["<turn>", "<image>"]},
    ],
)
def test_templates_get_the_special_tokens_of_the_model_as_in_transformers(
    bundle_directory: Path, settings: dict[str, Any]
) -> None:
    template = "{{ bos_token }}{{ turn_token }}{% for m in messages %}{{ image_token }}"
    template += "{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    (bundle_directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    config = bundle_directory / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings), encoding="utf-8")
    theirs = by_transformers(bundle_directory)
    expected = theirs.apply_chat_template(MESSAGES, tokenize=False)
    assert ("<turn>" in expected) is not isinstance(settings.get("extra_special_tokens"), list)
    saved = bundle_directory / "saved"
    theirs.save_pretrained(saved)
    for path in bundle_directory.glob("*.onnx*"):
        (saved / path.name).write_bytes(path.read_bytes())
    for directory in (bundle_directory, saved):
        ours = Tokenizer.from_bundle(open_bundle(directory))
        assert ours.apply_chat_template(MESSAGES, add_generation_prompt=False) == expected


def test_a_chat_of_texts_is_in_parts_if_the_template_needs_it(bundle_directory: Path) -> None:
    template = (
        "{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}"
    )
    (bundle_directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer = Tokenizer.from_bundle(open_bundle(bundle_directory))
    assert tokenizer.chat_prompt([{"role": "user", "content": "why?"}]) == "[why?]"


def test_no_chat_template(bundle_directory: Path) -> None:
    (bundle_directory / "chat_template.jinja").unlink()
    (bundle_directory / "edgetie.json").unlink()
    tokenizer = Tokenizer.from_bundle(open_bundle(bundle_directory))
    assert tokenizer.chat_template is None
    with pytest.raises(BundleError, match="no chat template"):
        tokenizer.apply_chat_template(MESSAGES)


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_tokenizer_missing_or_unreadable(bundle_directory: Path, content: str | None) -> None:
    (bundle_directory / "edgetie.json").unlink()
    path = bundle_directory / "tokenizer.json"
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Tokenizer.from_bundle(open_bundle(bundle_directory))


def sentencepiece_like() -> Tokenizer:
    """Spaces as ▁, unknown characters as bytes, the first space stripped: Llama 2's scheme."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁one", "▁two", "three", "a"]
    backend = tokenizers.Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend, {}, None)


@pytest.mark.parametrize("scheme", ["byte level", "sentencepiece"])
def test_streamed_text_is_the_whole_text(scheme: str) -> None:
    byte_level = Tokenizer(tiny.byte_tokenizer(), {}, None)
    tokenizer = byte_level if scheme == "byte level" else sentencepiece_like()
    for text in TEXTS:
        ids = tokenizer.encode(text)
        pieces = streamed(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)
        assert not any("\ufffd" in piece for piece in pieces)
        assert all(piece.isprintable() or piece.isspace() or "\n" in piece or "\t" in piece
                   or "\u200d" in piece for piece in pieces)  # fmt: skip


def test_spaces_between_words_survive() -> None:
    tokenizer = sentencepiece_like()
    ids = [tokenizer.backend.token_to_id(piece) for piece in ("▁one", "</s>", "▁two", "three", "a")]
    assert streamed(tokenizer, ids) == ["one", "", " two", "three", "a", ""]


def test_random_tokens_stream_to_the_whole_text() -> None:
    tokenizer = Tokenizer(tiny.byte_tokenizer(), {}, None)
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, tiny.VOCAB, 30).tolist()
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_character_cut_off_at_the_end() -> None:
    tokenizer = Tokenizer(tiny.byte_tokenizer(), {}, None)
    ids = tokenizer.encode("ab日")[:-1]
    assert streamed(tokenizer, ids)[-1] == "\ufffd"


@pytest.mark.slow
def test_a_real_tokenizer_as_transformers(real_bundle: Path) -> None:
    ours, theirs = Tokenizer.from_bundle(open_bundle(real_bundle)), by_transformers(real_bundle)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert "".join(streamed(ours, ours.encode(text))) == ours.decode(ours.encode(text))
    prompt = ours.apply_chat_template(MESSAGES)
    assert prompt == theirs.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True
    )
    ids = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert ours.encode(prompt, add_special_tokens=False) == list(ids)


def test_merges_without_the_prefix_are_refused_before_the_library_aborts(tmp_path: Path) -> None:
    tiny.write_plain(tmp_path)
    tiny.byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    data = json.loads((tmp_path / "tokenizer.json").read_bytes())
    data["model"]["continuing_subword_prefix"] = "x" * 100
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(BundleError, match=r"tokenizer\.json: not a readable .* lacks the prefix"):
        Tokenizer.from_bundle(open_bundle(tmp_path))
