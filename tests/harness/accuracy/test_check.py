"""``check``: the numbers it reports, what passes and what does not, and its command."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import image_models
import numpy as np
import pytest
import torch
from image_cases import drawn
from naive_decoder import (
    SCALE,
    NaiveReference,
    table,
    write_decoder,
)
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

from edgetie.bundle.manifest import Manifest, Signature, write_manifest
from edgetie.errors import BundleError, EdgetieError, ProviderError, SourceError
from edgetie.harness.accuracy.check import check_model
from edgetie.harness.accuracy.references import BundleReference, TorchReference
from edgetie.harness.accuracy.samples import BUILT_IN_TEXT, RANDOM_TOKENS, random_ids
from edgetie.harness.accuracy.thresholds import Thresholds
from edgetie.quantize.quantizer import quantize_model
from edgetie_cli.common import Share

BYTES = 257  # 256 bytes and a token that begins every text


def edgetie(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "from edgetie_cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )


def write_bundle(directory: Path, weights: np.ndarray, *, precision: str = "fp32") -> Path:
    """A bundle of the tiny decoder whose tokens are bytes, after one that begins the text."""
    write_decoder(directory, weights)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0} | {letter: index + 1 for index, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    signature = Signature([], [], logits="all", max_positions=200, vocab_size=len(weights))
    manifest = Manifest({}, "causal-lm", precision, signature, [], weights.size)
    write_manifest(directory, manifest)
    return directory


def byte_ids(text: str) -> list[int]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    return [alphabet.index(letter) + 1 for piece, _ in letters for letter in piece]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_text_is_scored_in_windows(tmp_path: Path) -> None:
    mine = table(0, BYTES) * 0.1
    other = mine + np.random.default_rng(3).normal(scale=0.002, size=mine.shape).astype(np.float32)
    text = BUILT_IN_TEXT[:700]
    report = check_model(
        write_bundle(tmp_path / "b", mine), NaiveReference(other), text=text, max_tokens=450
    )
    ids = byte_ids(text)[:450]
    windows = [np.array([[0, *ids[start : start + 199]]]) for start in range(0, 450, 199)]
    assert report.tokens == 450  # of each window of 200 the first token, <s>, is not scored
    assert report.positions == 450 + 3
    nats = {
        name: -np.concatenate(
            [np.log(softmax(model.logits(w))[np.arange(w.size - 1), w[0, 1:]]) for w in windows]
        ).mean()
        for name, model in (("mine", NaiveReference(mine)), ("other", NaiveReference(other)))
    }
    assert report.perplexity == pytest.approx(math.exp(nats["mine"]), rel=1e-4)
    assert report.reference_perplexity == pytest.approx(math.exp(nats["other"]), rel=1e-4)
    divergence, distance, agree = [], [], []
    for window in windows:
        act, ref = NaiveReference(mine).logits(window), NaiveReference(other).logits(window)
        p, q = softmax(ref), softmax(act)
        divergence += (p * np.log(p / q)).sum(-1).tolist()
        distance += np.abs(act - ref).max(-1).tolist()
        agree += (act.argmax(-1) == ref.argmax(-1)).tolist()
    assert report.mean_kl_divergence == pytest.approx(np.mean(divergence), rel=1e-3)
    assert report.max_abs_error == pytest.approx(max(distance), rel=1e-3)
    assert report.top1_agreement == pytest.approx(np.mean(agree), abs=0.005)
    assert not report.passed
    assert report.failures["relative_error"].startswith("relative error ")
    assert list(report.failures.values()) == report.to_dict()["failures"]


def test_equal_models_pass_and_random_ids_count_for_logit_errors_only(tmp_path: Path) -> None:
    weights = table(0, BYTES)
    report = check_model(
        write_bundle(tmp_path / "b", weights), NaiveReference(weights), max_tokens=300
    )
    assert report.passed
    assert report.tokens == 300
    assert report.positions == 300 + 2 + RANDOM_TOKENS
    assert "built-in text" in report.data
    assert f"{RANDOM_TOKENS} random ids" in report.data
    assert report.relative_error < 1e-5
    assert report.top1_agreement == report.greedy_agreement == 1
    assert report.precision == "fp32"


def test_bare_file_is_measured_on_random_ids(tmp_path: Path) -> None:
    weights = table()
    path = write_decoder(tmp_path, weights)
    report = check_model(path, str(path), max_tokens=40)
    assert report.data == "40 random token ids (no tokenizer)"
    assert (report.tokens, report.positions) == (39, 40)
    assert report.max_abs_error == 0
    ids = random_ids(40, len(weights))
    p = softmax(NaiveReference(weights).logits(ids[None]))
    expected = math.exp(-np.log(p[np.arange(39), ids[1:]]).mean())
    assert report.perplexity == pytest.approx(expected, rel=1e-3)
    with pytest.raises(BundleError, match="no tokenizer"):
        check_model(path, str(path), text="words")


def test_greedy_agreement_stops_at_the_first_difference(tmp_path: Path) -> None:
    weights = table()
    path = write_decoder(tmp_path, weights)

    class Diverging(NaiveReference):
        """Continues as the model does, but for the third token of every text."""

        def greedy(self, prompt_ids: list[int], n: int) -> list[int]:
            tokens = super().greedy(prompt_ids, n)
            return [*tokens[:2], (tokens[2] + 1) % len(weights), *tokens[3:]]

    report = check_model(path, Diverging(weights), greedy_prompts=3, greedy_tokens=8)
    assert report.greedy_agreement == 2 / 8
    assert report.top1_agreement == 1


def test_logits_that_are_not_finite_fail(tmp_path: Path) -> None:
    weights = table()
    broken = weights.copy()
    broken[7] = np.nan  # the logit of token 7 is NaN everywhere
    path = write_decoder(tmp_path, broken)
    report = check_model(path, NaiveReference(weights), max_tokens=20)
    assert not report.passed
    assert report.failures["max_abs_error"] == "logits are NaN or infinite at 20 positions"
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["max_abs_error"] is None


def test_window_shrinks_to_what_a_module_of_unknown_length_takes(tmp_path: Path) -> None:
    weights = table()
    path = write_decoder(tmp_path, weights)

    class Short(torch.nn.Module):
        """The tiny decoder, with a table of 100 positions that adds nothing."""

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            known = torch.zeros(100, weights.shape[1])
            positions = torch.nn.functional.embedding(torch.arange(ids.shape[1]), known)
            hidden = (torch.from_numpy(weights)[ids] + positions).cumsum(1) * SCALE
            return hidden @ torch.from_numpy(weights).T

    report = check_model(path, TorchReference(Short(), "short"), max_tokens=200)
    assert report.positions == 200
    assert report.tokens == 200 - 4  # windows of 64, 64, 64 and 8
    assert report.passed
    with pytest.raises(SourceError, match="short: IndexError in forward"):
        TorchReference(Short(), "short").logits(np.zeros((1, 101), np.int64))


def test_other_vocabulary_is_one_clear_error(tmp_path: Path) -> None:
    path = write_decoder(tmp_path, table())
    with pytest.raises(SourceError, match=r"a vocabulary of 50 tokens, but .* has 96"):
        check_model(path, NaiveReference(table(0, 50)))


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", table(0, 60))
    with pytest.raises(BundleError, match="do not belong together"):
        check_model(bundle, NaiveReference(table(0, 60)))


def test_absent_provider_is_an_error(tmp_path: Path) -> None:
    path = write_decoder(tmp_path, table())
    with pytest.raises(ProviderError, match="unknown"):
        check_model(path, NaiveReference(table()), provider="abacus")


def test_thresholds_given_replace_the_default_ones(tmp_path: Path) -> None:
    weights = table()
    path = write_decoder(tmp_path, weights)
    other = NaiveReference(weights * 1.01)
    report = check_model(path, other, max_tokens=64)
    assert list(report.failures) == ["relative_error", "mean_kl_divergence"]
    report = check_model(path, other, max_tokens=64, thresholds=Thresholds(max_relative_error=0.1))
    assert list(report.failures) == ["mean_kl_divergence"]
    assert check_model(path, other, max_tokens=64, thresholds=Thresholds(0.1, 1.0)).passed
    strict = Thresholds(0.1, 1.0, max_perplexity_increase=-1)
    assert list(check_model(path, other, max_tokens=64, thresholds=strict).failures) == [
        "perplexity_increase"
    ]


def test_limits_are_keywords_and_wrong_ones_fail_before_anything_runs(tmp_path: Path) -> None:
    weights = table()
    path = write_decoder(tmp_path, weights)
    other = NaiveReference(weights * 1.01)
    limits = {"max_relative_error": 0.1, "max_kl": 1.0}
    report = check_model(path, other, max_tokens=64, **limits)
    assert report.passed
    assert (report.thresholds.max_relative_error, report.thresholds.max_kl) == (0.1, 1.0)
    report = check_model(path, other, max_tokens=64, thresholds=Thresholds(0.1, 1.0), max_kl=0)
    assert list(report.failures) == ["mean_kl_divergence"]
    for name, value in (("min_top1", 98), ("max_kl", -1), ("max_perplexity_increase", math.nan)):
        with pytest.raises(EdgetieError, match="must be") as caught:
            check_model("nowhere", "nothing", **{name: value})
        assert caught.value.parameter == name
    for name in ("window", "max_tokens"):
        with pytest.raises(EdgetieError, match=f"{name}=0: must be") as caught:
            check_model("nowhere", "nothing", **{name: 0})


def test_a_path_is_read_and_the_name_of_a_file_is_not_text(tmp_path: Path) -> None:
    weights = table(0, BYTES)
    bundle = write_bundle(tmp_path / "b", weights)
    file = tmp_path / "text.txt"
    file.write_text("A short text, read from a file.", encoding="utf-8")
    report = check_model(bundle, NaiveReference(weights), text=file)
    assert report.tokens == len("A short text, read from a file.")
    with pytest.raises(EdgetieError, match=r"pass a pathlib\.Path") as caught:
        check_model(bundle, NaiveReference(weights), text=str(file))
    assert caught.value.parameter == "text"
    for broken in (tmp_path / "nowhere.txt", tmp_path):
        with pytest.raises(BundleError, match="not readable as UTF-8") as caught:
            check_model(bundle, NaiveReference(weights), text=broken)
        assert caught.value.parameter == "text"
    with pytest.raises(BundleError, match="fewer than two tokens"):
        check_model(bundle, NaiveReference(weights), text="x")
    long = "no name of a file is as long as this " * 200
    assert check_model(bundle, NaiveReference(weights), text=long, max_tokens=16).tokens == 16


@pytest.mark.slow
def test_command_exit_codes_and_json(tmp_path: Path) -> None:
    weights = table(0, BYTES)
    good = write_bundle(tmp_path / "good", weights)
    bad = write_bundle(tmp_path / "bad", weights * 1.1, precision="int8")
    done = edgetie("check", good, "--reference", good, "--max-tokens", 64, "--json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert data["passed"] is True
    for name in (
        "max_abs_error", "mean_kl_divergence", "top1_agreement", "greedy_agreement",
        "perplexity", "reference_perplexity",
    ):  # fmt: skip
        assert isinstance(data[name], float)
    assert data["perplexity"] == data["reference_perplexity"]
    assert set(data["environment"]) == {"processor", "system", "edgetie", "onnxruntime", "date"}

    text = tmp_path / "text.txt"
    text.write_text("A short text, read from a file.\n" * 4, encoding="utf-8")
    arguments = ["check", bad, "--reference", good, "--text", text]
    done = edgetie(*arguments, "--max-kl", 0)
    assert done.returncode == 1
    assert "edgetie: KL divergence" in done.stderr
    assert "| FAIL |" in done.stdout
    assert "\nfailed: " in done.stdout
    limits = ["--max-kl", 100, "--min-top1", 0, "--max-perplexity-increase", 100]
    assert edgetie(*arguments, *limits).returncode == 0
    limits = ["--max-kl", 100, "--min-top1", "0%", "--max-perplexity-increase", "10000%"]
    assert edgetie(*arguments, *limits).returncode == 0
    assert Share(0, 1).convert("98%", None, None) == Share(0, 1).convert("0.98", None, None) == 0.98
    for wrong in ("101%", "much%", "nan%"):
        done = edgetie(*arguments, "--min-top1", wrong)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    text.write_bytes(b"\xff\xfe\xff")
    done = edgetie(*arguments, "--quiet")
    assert done.returncode == 2
    assert done.stderr.startswith("edgetie: --text ")
    assert len(done.stderr.splitlines()) == 1


def test_images_before_a_text(tmp_path: Path) -> None:
    fp32, int8, images = (tmp_path / name for name in ("fp32", "int8", "images"))
    model = image_models.build(image_models.llava())
    image_models.export(model, fp32)
    image_models.write_llava_processor(fp32)
    quantize_model(fp32, int8)
    options = {"max_tokens": 30, "greedy_prompts": 1, "greedy_tokens": 4, "max_kl": 1.0}
    same = check_model(fp32, str(fp32), **options)
    assert same.data.endswith("after 4 drawn images")
    assert max(same.max_abs_error, same.encoder_error) < 1e-5
    assert same.encoder_similarity == pytest.approx(1)
    images.mkdir()
    drawn(40, 30).save(images / "a.png")
    report = check_model(int8, str(fp32), images=images, **options)
    assert report.data.endswith(f"after 1 images of {images}")
    assert 0 < report.encoder_error < 0.1
    assert 0.99 < report.encoder_similarity < 1
    listed = check_model(int8, BundleReference(fp32, images=images), images=images, **options)
    assert listed.max_abs_error == report.max_abs_error
    with pytest.raises(BundleError, match="reads no images"):
        check_model(write_decoder(tmp_path, table()), NaiveReference(table()), images=images)
    model.save_pretrained(tmp_path / "torch")
    with pytest.raises(SourceError, match="is an image model; compare a bundle of it with another"):
        check_model(fp32, str(tmp_path / "torch"))
