"""A pruned bundle computes the same with fewer tokens, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import image_models
import image_to_text_models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import runtime_models
import torch
import transformers
from adapter_models import IDS, AdaptedBundle, largest_error
from models import source_of, transformers_model
from onnx import numpy_helper
from seq2seq_models import make

from edgetie.bundle.bundle import open_bundle
from edgetie.errors import EdgetieError, PruneError
from edgetie.export.exporter import ExportReport, export_model
from edgetie.prune.pruner import PruneReport, prune_vocabulary
from edgetie.quantize.quantizer import quantize_model
from edgetie.runtime.decoding.generation import generate, make_decoder
from edgetie.runtime.session import Session, open_session
from edgetie.runtime.text.tokenizer import Tokenizer
from edgetie.sources.source import Source

TEXT = "once upon a time the user said hello, naïve"
PROMPT = [50, 300, 7, 120]
BEGINNINGS = (
    "I had long reconciled myself to the", "For one month previous to this, I",
    "For three years I studied about as", "I felt it rather amusing to find",
    "He studiously assumed an air of superiority,", "I suppose he was a great man",
    "with the school, but not so easy", "It was so absurd that I asked",
    "The fellows who like to borrow money", "The only pity is that I am",
    "After some effort, I had it and", "If they wanted to talk, they should",
    "I had been thinking of paying that", "I took out that one sen and",
    "At one end of the table the", "No sooner had he backed me up",
    "The couple here, being formerly of samurai", "I think even the priests of the",
    "Red Shirt stopped short, stared around, and", "Besides, he is so very popular among",
)  # fmt: skip
"""Of sentences of the novel. The real model continues them with tokens of the novel."""


def greedy(session: Session, prompt: list[int], count: int = 12) -> list[int]:
    steps = generate(session, [prompt], max_new_tokens=count, stop_token_ids=frozenset())
    return [int(step.tokens[0]) for step in steps]


def kept_tokens(bundle: Path) -> list[int]:
    return [int(line) for line in (bundle / "kept_tokens.txt").read_text("utf-8").split()]


def old_tokens(report: PruneReport) -> list[int]:
    return kept_tokens(report.bundle.directory)


def prune_around(bundle: Path, target: Path) -> PruneReport:
    """Prune to a prompt and its greedy continuation, which must be the same afterwards."""
    expected = greedy(open_session(bundle), PROMPT)
    others = range(200, 270)  # so that the table is large enough to count as tied
    report = prune_vocabulary(bundle, target, keep_tokens=[*PROMPT, *expected, *others])
    kept = old_tokens(report)
    assert len(kept) == report.rows_after < 120
    tokens = greedy(open_session(target), [kept.index(token) for token in PROMPT])
    assert [kept[token] for token in tokens] == expected
    return report


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Gemma3Text", "GPTJ"])
def test_the_same_tokens_are_generated(
    exported: Callable[[str], ExportReport], kind: str, tmp_path: Path
) -> None:
    """GPT-J's head has a bias."""
    source = exported(kind).bundle
    report = prune_around(source.directory, tmp_path / "small")
    manifest = report.bundle.manifest
    assert manifest.signature.vocab_size == report.rows_after
    assert manifest.signature.outputs[0].shape[-1] == report.rows_after
    assert [len(tie.uses) for tie in manifest.ties] == [len(t.uses) for t in source.manifest.ties]
    assert report.table_bytes_after * 320 == report.table_bytes_before * report.rows_after
    assert report.logits_error <= 1e-6
    quantize_model(tmp_path / "small", tmp_path / "int8")
    assert open_bundle(tmp_path / "int8").manifest.signature.vocab_size == report.rows_after


def test_adapters_stay(adapted_bundle: AdaptedBundle, tmp_path: Path) -> None:
    report = prune_vocabulary(
        adapted_bundle.directory, tmp_path / "small", keep_tokens=[*IDS, *range(200, 270)]
    )
    kept, session = old_tokens(report), open_session(tmp_path / "small")
    ids = np.array([[kept.index(token) for token in IDS]])
    for name, expected in adapted_bundle.logits.items():
        session.use_adapter(name)
        logits = make_decoder(session, 1, len(IDS), 0).prefill(ids)[0]
        assert largest_error(logits, expected[-1][kept]) < 1e-3


def test_an_untied_head_loses_the_same_rows(tmp_path: Path) -> None:
    module = transformers_model("Llama")
    module.lm_head.weight = torch.nn.Parameter(torch.randn(320, 64))
    export_model(source_of(module), tmp_path / "fp32")
    report = prune_around(tmp_path / "fp32", tmp_path / "small")
    assert report.bundle.manifest.ties == []
    assert report.table_bytes_after == 2 * report.rows_after * 64 * 4


def test_three_uses_in_two_files(tmp_path: Path) -> None:
    model = make("Bart")
    source = Source("transformers", "Bart", model, model.config, model.config.save_pretrained)
    export_model(source, tmp_path / "fp32")
    report = prune_around(tmp_path / "fp32", tmp_path / "small")
    (tie,) = report.bundle.manifest.ties
    assert (tie.shape[0], len(tie.uses)) == (report.rows_after, 3)
    places = set()
    for name in ("encoder_model", "decoder_model", "decoder_model_merged"):
        graph = ir.load(tmp_path / "small" / f"{name}.onnx").graph
        tensor = graph.initializers[tie.name].const_value
        assert isinstance(tensor, ir.ExternalTensor)
        places.add((tensor.location, tensor.offset, tensor.length))
    assert len(places) == 1
    kept = old_tokens(report)
    config = json.loads((tmp_path / "small" / "config.json").read_text("utf-8"))
    assert config["vocab_size"] == len(kept)
    assert kept[config["decoder_start_token_id"]] == 2
    assert [kept[token] for token in report.bundle.manifest.signature.start_token_ids] == [2]


def test_an_image_token_is_renumbered_in_all_graphs(tmp_path: Path) -> None:
    source = image_models.export(image_models.build(image_models.gemma3()), tmp_path / "fp32")
    target = tmp_path / "small"
    report = prune_vocabulary(source.bundle, target, keep_tokens=[5, 9, 20, 30])
    kept = old_tokens(report)
    token = report.bundle.manifest.signature.image_token_id
    assert token is not None
    assert kept[token] == image_models.TOKEN
    assert report.logits_error <= 1e-6
    assert {path.name for path in target.iterdir()} == (
        {path.name for path in source.bundle.files} | {"kept_tokens.txt"}
    )
    for name in ("decoder_model", "embedding"):
        graph = ir.load(target / f"{name}.onnx").graph
        tables = [v for v in graph.initializers.values() if v.shape == ir.Shape([len(kept), 16])]
        assert len(tables) == 1
        constants = [
            value.const_value.numpy().item()
            for node in graph
            if node.op_type == "Equal"
            for value in node.inputs
            if value is not None and value.const_value is not None
        ]
        assert token in constants
        assert image_models.TOKEN not in constants


def test_a_model_that_reads_audio(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "head_dim": 8, "num_key_value_heads": 2,
    }  # fmt: skip
    audio = {"model_type": "glmasr_encoder", **sizes, "num_mel_bins": 10, "intermediate_size": 64}
    config = transformers.GlmAsrConfig(
        audio_config=audio, text_config={"model_type": "llama", **sizes, "vocab_size": 64},
        audio_token_id=60, tie_word_embeddings=True,
    )  # fmt: skip
    module = transformers.GlmAsrForConditionalGeneration(config).eval()
    source = Source("transformers", "x", module, config, config.save_pretrained)
    export_model(source, tmp_path / "fp32")
    report = prune_vocabulary(tmp_path / "fp32", tmp_path / "small", keep_tokens=[5, 9, 20, 30])
    token = report.bundle.manifest.signature.audio_token_id
    assert token is not None
    assert old_tokens(report)[token] == 60
    settings = json.loads((tmp_path / "small" / "config.json").read_text("utf-8"))
    assert settings["audio_token_id"] == token
    assert settings["text_config"]["vocab_size"] == report.rows_after


@pytest.mark.parametrize("name", ["trocr", "blip", "florence2"])
def test_a_model_from_images_to_text(name: str, tmp_path: Path) -> None:
    """Florence-2's encoder reads a prompt with places for the image."""
    model = image_to_text_models.build(image_to_text_models.MODELS[name])
    export_model(image_to_text_models.source_of(model), tmp_path / "fp32")
    kept = [5, 9, *range(20, 40)]
    report = prune_vocabulary(tmp_path / "fp32", tmp_path / "small", keep_tokens=kept)
    assert report.rows_after < 30
    old, new = open_bundle(tmp_path / "fp32").manifest.signature, report.bundle.manifest.signature
    numbers = {token: index for index, token in enumerate(old_tokens(report))}
    assert new.start_token_ids == [numbers[token] for token in old.start_token_ids]
    assert new.eos_token_ids == [numbers[token] for token in old.eos_token_ids]
    assert new.image_tokens == old.image_tokens
    assert new.image_token_id == numbers.get(old.image_token_id or -1)
    assert report.logits_error <= 1e-6


def test_masked_language_model_compares_tokens_with_padding(tmp_path: Path) -> None:
    """RoBERTa's positions depend on which tokens are padding."""
    config = transformers.RobertaConfig(
        vocab_size=320, hidden_size=64, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=80, pad_token_id=5,
    )  # fmt: skip
    module = transformers.RobertaForMaskedLM(config).eval()
    export_model(
        Source("transformers", "x", module, config, config.save_pretrained, task="masked-lm"),
        tmp_path / "fp32",
    )
    report = prune_vocabulary(tmp_path / "fp32", tmp_path / "small", keep_tokens=[9, 100, 101])
    kept = old_tokens(report)
    assert {5, 9, 100, 101} <= {*kept}
    assert json.loads((tmp_path / "small" / "config.json").read_text("utf-8"))["pad_token_id"] == (
        kept.index(5)
    )
    graph = ir.load(tmp_path / "small" / "model.onnx").graph
    pads = [node.inputs[1] for node in graph if node.op_type == "Equal"]
    values = [int(pad.const_value.numpy()) for pad in pads if pad is not None and pad.const_value]
    assert kept.index(5) in values


def test_a_text_is_encoded_as_before(tmp_path: Path) -> None:
    source = runtime_models.write_chat_bundle(tmp_path / "chat")
    report = prune_vocabulary(source, tmp_path / "small", keep_text=[TEXT])
    old = Tokenizer.from_bundle(open_bundle(source))
    new = Tokenizer.from_bundle(report.bundle)
    kept = old_tokens(report)
    assert [kept[token] for token in new.encode(TEXT)] == old.encode(TEXT)
    other = "¿qué? answers 漢字 \x00"
    assert new.decode(new.encode(other)) == other
    assert len(new.encode(other)) > len(old.encode(other))
    prompt = new.chat_prompt([{"role": "user", "content": TEXT}])
    assert [kept[token] for token in new.encode(prompt)] == old.encode(prompt)
    assert report.text is not None
    assert report.text.tokens_before == report.text.tokens_after == len(old.encode(TEXT))
    assert report.text.words == 9
    ids = old.encode(TEXT)
    expected = runtime_models.naive_logits(ids)[-1, kept]
    session = open_session(report.bundle)
    (step,) = generate(session, [new.encode(TEXT)], max_new_tokens=1, stop_token_ids=frozenset())
    assert int(step.tokens[0]) == int(np.argmax(expected))


@pytest.mark.slow
def test_a_real_model_answers_as_if_other_tokens_were_forbidden(
    real_bundle: Path, real_pruned: Path
) -> None:
    kept = kept_tokens(real_pruned)
    assert len(kept) < 10_000
    assert open_bundle(real_bundle).file_bytes - open_bundle(real_pruned).file_bytes > 90e6
    numbers = {token: index for index, token in enumerate(kept)}
    tokenizer = Tokenizer.from_bundle(open_bundle(real_bundle))
    ids = tokenizer.encode(tokenizer.chat_prompt([{"role": "user", "content": "What did he say?"}]))
    forbidden = np.full(49152, -np.inf, np.float32)
    forbidden[kept] = 0
    old = make_decoder(open_session(real_bundle), 1, len(ids), 16)
    new = make_decoder(open_session(real_pruned), 1, len(ids), 16)
    expected = (old.prefill(np.array([ids])) + forbidden).argmax(-1)
    token = new.prefill(np.array([[numbers[token] for token in ids]])).argmax(-1)
    for _ in range(16):
        assert kept[int(token[0])] == int(expected[0])
        expected = (old.step(expected) + forbidden).argmax(-1)
        token = new.step(token).argmax(-1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [("real_bundle", "real_pruned"), ("real_int8", "real_pruned_int8")],
    ids=["fp32", "int8"],
)  # fmt: skip
def test_a_real_model_gives_the_same_answers_of_kept_tokens(
    names: tuple[str, str], request: pytest.FixtureRequest
) -> None:
    """20 of 20; the int8 bundle is quantized after it is pruned, and is 17 % smaller."""
    source, pruned = (open_session(request.getfixturevalue(name)) for name in names)
    assert pruned.bundle.file_bytes < 0.85 * source.bundle.file_bytes
    kept = kept_tokens(pruned.bundle.directory)
    old, new = (Tokenizer.from_bundle(session.bundle) for session in (source, pruned))
    for beginning in BEGINNINGS:
        expected = greedy(source, old.encode(beginning), 16)
        assert {*expected} <= {*kept}
        answer = greedy(pruned, new.encode(beginning), 16)
        assert [kept[token] for token in answer] == expected


def test_unseen_text_is_measured_on_the_last_tenth(tmp_path: Path) -> None:
    source = runtime_models.write_chat_bundle(tmp_path / "chat")
    text = "the user said hello " * 2000 + "once upon a time " * 150
    report = prune_vocabulary(source, tmp_path / "small", keep_text=[text])
    assert report.unseen is not None
    assert report.unseen.words > 200
    assert report.unseen.tokens_per_word_after > report.unseen.tokens_per_word_before


def test_bundles_that_cannot_be_pruned(
    exported: Callable[[str], ExportReport], tmp_path: Path
) -> None:
    directory = exported("Llama").bundle.directory
    target = tmp_path / "small"
    quantize_model(directory, tmp_path / "int8")
    for path, problem in (
        (tmp_path / "int8", "prune the fp32 bundle and quantize it afterwards"),
        (directory / "model.onnx", "not a bundle"),
    ):
        with pytest.raises(PruneError, match=problem):
            prune_vocabulary(path, target, keep_tokens=[5])
    with pytest.raises(PruneError, match=r"has no tokenizer\.json"):
        prune_vocabulary(directory, target, keep_text=["hello"])
    with pytest.raises(PruneError, match="nothing to keep"):
        prune_vocabulary(directory, target)
    with pytest.raises(EdgetieError, match="already exists"):
        prune_vocabulary(directory, tmp_path / "int8", keep_tokens=[5])
    assert not target.exists()


def test_a_node_that_computes_with_tokens_is_refused_by_name(tmp_path: Path) -> None:
    directory = runtime_models.write_chat_bundle(tmp_path / "chat")
    graph = onnx.load(directory / "model.onnx", load_external_data=False)
    one = numpy_helper.from_array(np.array(0), "zero")
    graph.graph.initializer.append(one)
    look_up = next(n for n in graph.graph.node if n.op_type == "Gather" and n.input[0] == "table")
    add = onnx.helper.make_node("Add", [look_up.input[1], "zero"], ["shifted"], "shift")
    graph.graph.node.insert(list(graph.graph.node).index(look_up), add)
    look_up.input[1] = "shifted"
    onnx.save(graph, directory / "model.onnx")
    manifest = open_bundle(directory / "model.onnx").manifest
    manifest.precision = "fp32"
    from edgetie.bundle.manifest import write_manifest

    write_manifest(directory, manifest)
    with pytest.raises(PruneError, match=r"node shift \(Add\) computes with the numbers of tokens"):
        prune_vocabulary(directory, tmp_path / "small", keep_tokens=[5])
    assert not (tmp_path / "small").exists()


def test_transformers_model_without_settings(tmp_path: Path) -> None:
    export_model(source_of(transformers_model("Qwen2"), "x"), tmp_path / "fp32")
    report = prune_vocabulary(tmp_path / "fp32", tmp_path / "small", keep_tokens=[5, 6])
    assert {5, 6} <= {*old_tokens(report)}
