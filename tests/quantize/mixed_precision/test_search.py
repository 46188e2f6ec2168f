"""Limits on what int8 may cost: measured, kept by keeping some weights in floating point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
import torch
import transformers
from click.testing import CliRunner
from onnx import TensorProto
from quantize_models import plain as plain_file
from runtime_models import byte_tokenizer
from tokenizers.processors import TemplateProcessing

from edgetie.bundle.bundle import open_bundle
from edgetie.errors import LimitError, QuantizeError
from edgetie.export.exporter import export_model
from edgetie.harness.accuracy.check import check_model
from edgetie.harness.accuracy.metrics import PredictionErrors
from edgetie.harness.accuracy.references import BundleReference
from edgetie.harness.accuracy.samples import BUILT_IN_TEXT
from edgetie.harness.accuracy.thresholds import Thresholds
from edgetie.harness.ties.inspect import tie_status
from edgetie.progress import Stages
from edgetie.quantize.calibration.activations import CalibrationText, calibration_text
from edgetie.quantize.calibration.layerwise_run import CalibrationInput
from edgetie.quantize.mixed_precision.accuracy_meter import AccuracyMeter
from edgetie.quantize.mixed_precision.candidates import FLOAT, HIGHER_PRECISION, QUANTIZED
from edgetie.quantize.mixed_precision.search import quantize_within_limits
from edgetie.quantize.mixed_precision.sensitivity import Precision
from edgetie.quantize.model_quantizer import ModelQuantizer
from edgetie.quantize.quantizer import QuantizeReport, quantize_model
from edgetie.quantize.source_models import read_source_models
from edgetie.quantize.weights.array_spill import ArraySpill
from edgetie.sources.source import Source
from edgetie.targets import SCHEMES
from edgetie_cli.main import cli

FEW = BUILT_IN_TEXT[:1600]
"""Characters, of which so few are measured on that all of them are."""


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sensitivity") / "fp32"
    model = models.transformers_model("Llama")
    export_model(
        Source("transformers", "Llama", model, model.config, lambda target: None), directory
    )
    return directory


@pytest.fixture(scope="module")
def plain(fp32: Path) -> QuantizeReport:
    """With a limit that holds by itself."""
    return quantize_model(fp32, fp32.parent / "plain", limits=Thresholds(max_kl=1.0))


def divergence(fp32: Path, int8: Path) -> float:
    """On tokens of this test's own."""
    tokens = np.random.default_rng(5).integers(0, models.VOCAB, (12, 100))
    reference, candidate, errors = BundleReference(fp32), BundleReference(int8), PredictionErrors()
    for window in tokens:
        both = (model.logits(window[None]) for model in (reference, candidate))
        errors.add(*both, np.full(len(window), -1))
    return errors.metrics.mean_kl_divergence


def floats(directory: Path) -> set[str]:
    graph = onnx.load(directory / "model.onnx", load_external_data=False).graph
    return {
        t.name
        for t in graph.initializer
        if t.data_type == TensorProto.FLOAT and len(t.dims) == 2 and "scales" not in t.name
    }


@pytest.mark.slow
def test_nothing_is_kept_where_the_limit_holds(fp32: Path, plain: QuantizeReport) -> None:
    assert plain.costs == ()
    assert plain.float_weights == ()
    measured = plain.manifest.quantization["measured"]
    assert measured["kl"] == pytest.approx(divergence(fp32, plain.bundle.directory), rel=0.5)
    names = {path.name for path in plain.bundle.directory.iterdir()}
    assert not {QUANTIZED, HIGHER_PRECISION, FLOAT} & names


@pytest.mark.slow
def test_the_costliest_weights_are_kept_until_the_limit_holds(
    fp32: Path, plain: QuantizeReport, tmp_path: Path
) -> None:
    limit = plain.manifest.quantization["measured"]["kl"] * 0.6
    report = quantize_model(fp32, tmp_path / "int8", limits=Thresholds(max_kl=limit))
    kept = {cost.name for cost in report.costs if cost.precision is Precision.FLOAT}
    assert 0 < len(kept) < len(report.costs)
    assert report.manifest.quantization["measured"]["kl"] <= limit
    before = divergence(fp32, plain.bundle.directory)
    assert divergence(fp32, report.bundle.directory) < 0.8 * before
    assert kept <= floats(report.bundle.directory)
    assert [text.split(":")[0] for text in report.float_weights] == [
        cost.name for cost in report.costs if cost.precision is Precision.FLOAT
    ]
    worth = [cost.kl / cost.float_bytes for cost in report.costs]
    assert max(worth) == max(
        c.kl / c.float_bytes for c in report.costs if c.precision is Precision.FLOAT
    )
    added = sum(
        cost.float_bytes if cost.precision is Precision.FLOAT else cost.higher_precision_bytes
        for cost in report.costs
        if cost.precision is not Precision.SCHEME
    )
    assert report.bundle.file_bytes - plain.bundle.file_bytes == pytest.approx(added, abs=20_000)
    status = tie_status(open_bundle(report.bundle.directory))
    assert status.intact is True
    report.bundle.verify_files(hashes=True)


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "share", "block"), [("int8", 0.92, 16), ("int4", 0.3, 64)])
def test_finer_blocks_or_more_bits_come_before_floats(
    fp32: Path, tmp_path: Path, scheme: str, share: float, block: int
) -> None:
    plain = quantize_model(fp32, tmp_path / "plain", scheme=scheme, limits=Thresholds(max_kl=10.0))
    limits = Thresholds(max_kl=share * plain.manifest.quantization["measured"]["kl"])
    report = quantize_model(fp32, tmp_path / "finer", scheme=scheme, limits=limits)
    before = divergence(fp32, plain.bundle.directory)
    higher_precision = [cost for cost in report.costs if cost.precision is Precision.HIGHER]
    assert higher_precision
    assert not any(cost.precision is Precision.FLOAT for cost in report.costs)
    assert report.manifest.quantization["finer"]
    assert report.manifest.quantization["blocks"][str(block)] >= len(higher_precision)
    assert divergence(fp32, report.bundle.directory) < (share + 1) / 2 * before
    added = report.bundle.file_bytes - plain.bundle.file_bytes
    assert added == pytest.approx(
        sum(cost.higher_precision_bytes for cost in higher_precision), abs=20_000
    )
    graph = onnx.load(report.bundle.model_path, load_external_data=False).graph
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    layers = {node.input[1]: {a.name: a.i for a in node.attribute} for node in products}
    for cost in higher_precision:
        assert (layers[cost.name]["bits"], layers[cost.name]["block_size"]) == (8, block)
    assert not [node for node in graph.node if node.op_type == "If"]
    assert tie_status(open_bundle(report.bundle.directory)).intact is True


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheme", ["int8-mapped", "int8-plain", "int8-dynamic", "int8-static", "int8-fp16"]
)
def test_limits_hold_in_every_scheme(fp32: Path, tmp_path: Path, scheme: str) -> None:
    plain = quantize_model(fp32, tmp_path / "plain", scheme=scheme, limits=Thresholds(max_kl=10.0))
    limit = plain.manifest.quantization["measured"]["kl"] * 0.7
    report = quantize_model(fp32, tmp_path / "kept", scheme=scheme, limits=Thresholds(max_kl=limit))
    assert report.manifest.quantization["measured"]["kl"] <= limit
    assert all(cost.kl > 0 for cost in report.costs)
    assert any(
        cost.precision is Precision.FLOAT or cost.precision is Precision.HIGHER
        for cost in report.costs
    )


@pytest.mark.slow
def test_a_limit_below_the_cost_of_the_table_is_refused(fp32: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="from the tied table alone, KL divergence"):
        quantize_model(fp32, tmp_path / "int8", limits=Thresholds(max_kl=1e-12))
    assert not (tmp_path / "int8").exists()


@pytest.mark.slow
def test_limits_from_the_command_line(fp32: Path, plain: QuantizeReport, tmp_path: Path) -> None:
    limit = plain.manifest.quantization["measured"]["kl"] * 0.8
    arguments = ["quantize", str(fp32), "-o", str(tmp_path / "int8"), "--max-kl", f"{limit}"]
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert any(cost["kept"] or cost["finer"] for cost in found["costs"])
    assert found["search"]["tried"] >= 1
    assert found["quantization"]["measured"]["kl"] <= limit
    picture = tmp_path / "costs.png"
    text = CliRunner().invoke(cli, [*arguments, "--force", "--plot", str(picture)])
    assert "measured     KL" in text.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_cache_of_8_bits_is_held_to_the_limits_too(
    fp32: Path, plain: QuantizeReport, tmp_path: Path
) -> None:
    both = quantize_model(
        fp32, tmp_path / "both", limits=Thresholds(max_kl=1.0), int8_kv_cache=True
    )
    alone = plain.manifest.quantization["measured"]["kl"]
    together = both.manifest.quantization["measured"]["kl"]
    assert together == pytest.approx(divergence(fp32, both.bundle.directory), rel=0.5)
    assert together > alone
    limits = Thresholds(max_kl=(alone + together) / 2)
    with pytest.raises(QuantizeError, match=r"with a KV cache of int8, KL .* allow more"):
        quantize_model(fp32, tmp_path / "int8", limits=limits, int8_kv_cache=True)
    assert not (tmp_path / "int8").exists()


def masked_model() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=models.VOCAB, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=128,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config).eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Llama", "Bert"])
def test_limits_are_measured_as_check_measures(tmp_path: Path, kind: str) -> None:
    """Special tokens around each window, and masked tokens for a masked language model."""
    tokenizer = byte_tokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )

    def save(target: Path) -> None:
        tokenizer.save(str(target / "tokenizer.json"))
        named = {"mask_token": "<pad>", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
        (target / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")

    model = models.transformers_model(kind) if kind == "Llama" else masked_model()
    export_model(Source("transformers", kind, model, model.config, save), tmp_path / "fp32")
    limits = Thresholds(max_kl=10.0)
    report = quantize_model(tmp_path / "fp32", tmp_path / "int8", limits=limits, calibration=FEW)
    bundle = open_bundle(tmp_path / "fp32")
    text = calibration_text(bundle, FEW, [])
    assert (text.prefix, text.suffix, text.mask) == ([1], [2], 0)
    rest = tokenizer.decode(text.evaluation, skip_special_tokens=False)
    assert tokenizer.encode(rest, add_special_tokens=False).ids == text.evaluation
    longest = open_bundle(tmp_path / "fp32").manifest.signature.max_positions
    window = min(256, longest or 256)
    checked = check_model(
        report.bundle,
        str(tmp_path / "fp32"),
        text=rest,
        window=window,
        max_tokens=len(rest),
    )
    measured = report.manifest.quantization["measured"]
    assert measured["positions"] == checked.positions
    assert measured["kl"] == pytest.approx(checked.mean_kl_divergence, rel=1e-3)
    assert measured["perplexity_increase"] == pytest.approx(checked.perplexity_increase, rel=1e-3)


@pytest.fixture
def quantizer(tmp_path: Path) -> ModelQuantizer:
    """A plain file in int4, preprocessed."""
    source = read_source_models(plain_file(tmp_path, head="Transpose"))
    quantizer = ModelQuantizer(SCHEMES["int4"], source.bundle, source.models, source.ties)
    tokens = np.random.default_rng(0).integers(3, models.VOCAB, 600).tolist()
    quantizer.preprocess(CalibrationInput(tokens), ArraySpill(tmp_path), "percentile")
    return quantizer


def text(count: int) -> CalibrationText:
    tokens = np.random.default_rng(1).integers(3, models.VOCAB, count).tolist()
    return CalibrationText([], tokens, "random tokens")


def test_precision_is_raised_until_limits_hold(quantizer: ModelQuantizer, tmp_path: Path) -> None:
    divergences, precisions = [], []
    for number, share in enumerate((None, 0.5)):
        directory = tmp_path / str(number)
        directory.mkdir()
        limit = 1e9 if share is None else divergences[0] * share
        meter = AccuracyMeter(quantizer.bundle, text(600), Thresholds(max_kl=limit))
        result, costs, metrics, summary = quantize_within_limits(
            quantizer, directory, meter, Stages()
        )
        assert (summary is None) == (share is None)
        assert metrics.mean_kl_divergence <= limit
        divergences.append(metrics.mean_kl_divergence)
        precisions.append([cost.precision for cost in costs])
        assert result.embeddings == {"model.onnx": ["table"]}
        if share == 0.5:
            (cost,) = costs
            assert (cost.name, cost.kl > 0) == ("middle", True)
            assert cost.float_bytes > cost.higher_precision_bytes > 0
    assert precisions == [[], [Precision.HIGHER]]


def test_limits_that_the_embedding_alone_breaks(quantizer: ModelQuantizer, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    meter = AccuracyMeter(quantizer.bundle, text(600), Thresholds(max_kl=1e-12))
    with pytest.raises(LimitError, match=r"from the tied table alone, KL divergence .* allow more"):
        quantize_within_limits(quantizer, tmp_path / "out", meter, Stages())


class Interrupted(Stages):
    """Interrupts, as Ctrl-C does, when a stage begins."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.notes: list[str] = []

    def stage(self, name: str) -> None:
        super().stage(name)
        if name == self.name:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_search_that_is_interrupted_gives_the_best_form_so_far(
    tmp_path: Path,
) -> None:
    file = plain_file(tmp_path)
    whole = quantize_model(file, tmp_path / "whole", scheme="int4", limits=Thresholds(max_kl=1e9))
    limits = Thresholds(max_kl=whole.manifest.quantization["measured"]["kl"] / 2)
    progress = Interrupted("rank weights")
    report = quantize_model(
        file, tmp_path / "best", scheme="int4", limits=limits, progress=progress
    )
    assert report.search is not None
    assert (report.search.stopped, report.search.tried) == ("request", 1)
    assert progress.notes[0].startswith("the scheme alone breaks the limits; the search takes ab")
    assert limits.max_kl is not None
    assert report.manifest.quantization["measured"]["kl"] <= limits.max_kl
    assert report.manifest.quantization["finer"] == ["middle"]
    report.bundle.verify_files(hashes=True)
    names = {path.name for path in report.bundle.directory.iterdir()}
    assert not {QUANTIZED, HIGHER_PRECISION, FLOAT} & names
    with pytest.raises(KeyboardInterrupt):
        quantize_model(
            file, tmp_path / "none", scheme="int4", limits=limits, progress=Interrupted("measure")
        )
    assert not (tmp_path / "none").exists()


def test_a_time_budget_ends_the_search(tmp_path: Path) -> None:
    file = plain_file(tmp_path)
    limits = Thresholds(max_kl=1e9)
    whole = quantize_model(file, tmp_path / "whole", scheme="int4", limits=limits, time_budget=1e-3)
    assert whole.search is None
    limits = Thresholds(max_kl=whole.manifest.quantization["measured"]["kl"] / 2)
    report = quantize_model(file, tmp_path / "best", scheme="int4", limits=limits, time_budget=1e-3)
    assert report.search is not None
    assert (report.search.stopped, report.search.tried) == ("time budget", 1)
    assert not any(cost.kl == cost.kl for cost in report.costs)
    result = CliRunner().invoke(
        cli,
        f"quantize {file} -o {tmp_path / 'line'} --scheme int4 --max-kl {limits.max_kl} "
        "--time-budget 0.001s".split(),
    )
    assert "stopped by time budget" in result.stdout


@pytest.mark.parametrize("budget", ["0", "-1", "soon", "5 days", "nan"])
def test_time_budgets_that_are_none(tmp_path: Path, budget: str) -> None:
    arguments = ["quantize", "x", "-o", str(tmp_path / "y"), "--time-budget", budget]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert "is not a duration; write 90, 90s, 5m or 1.5h" in result.stderr


def test_a_time_budget_needs_a_search(tmp_path: Path) -> None:
    file = plain_file(tmp_path)
    with pytest.raises(QuantizeError, match="time_budget: only a search"):
        quantize_model(file, tmp_path / "out", time_budget=5)
    with pytest.raises(QuantizeError, match="time_budget=0: must be above 0"):
        quantize_model(file, tmp_path / "out", time_budget=0, limits=Thresholds(max_kl=1))
