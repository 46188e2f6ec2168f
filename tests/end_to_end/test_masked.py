"""Masked language models: a real ALBERT, whose layers share their weights, and small others."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import tokenizers
import torch
import transformers
from packages import rxnmapper

from edgetie.errors import BundleError
from edgetie.export.exporter import ExportReport, export_model
from edgetie.harness.accuracy.check import AccuracyReport, check_model
from edgetie.harness.latency.bench import bench_model
from edgetie.quantize.quantizer import quantize_model
from edgetie.quickstart import quickstart
from edgetie.report.html import write_html
from edgetie.report.tables import resource_table, speed_table
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.session import open_session
from edgetie.runtime.text.tokenizer import Tokenizer
from edgetie.sources.source import Source
from edgetie.ties.groups import equal_initializers, find_ties
from edgetie_cli.printing.quickstart import print_quickstart

pytestmark = pytest.mark.slow

SIZES = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}

REACTIONS = [
    "CC(=O)Cl.OCC>>CC(=O)OCC",
    "BrCc1ccccc1.NC>>CNCc1ccccc1",
    "OC(=O)c1ccccc1.CO>>COC(=O)c1ccccc1",
    "C=CC.BrBr>>CC(Br)CBr",
    "N#Cc1ccccc1.O>>NC(=O)c1ccccc1",
]


SMILES = r"\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|/|:|~|>>?|\*|%[0-9]{2}|[0-9]"


@pytest.fixture(scope="module")
def albert(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """The package's tokenizer is Python code of its own; here it is a ``tokenizer.json``."""
    directory = tmp_path_factory.mktemp("albert")
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copyfile(rxnmapper() / name, directory / name)
    words = (rxnmapper() / "vocab.txt").read_text("utf-8").split("\n")
    vocabulary = {word: index for index, word in enumerate(words) if word}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(SMILES), "removed", invert=True
    )
    special = [(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=special
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, mask_token="[MASK]", pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(directory)
    return export_model(str(directory), directory / "fp32", allow_pickle=True)


def run(path: Path, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return session.run(["logits"], feeds)[0]


def reactions(bundle: ExportReport) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, each fifth of them masked, padded on the right."""
    tokenizer = Tokenizer.from_bundle(bundle.bundle)
    assert tokenizer.mask_token_id is not None
    rows = [tokenizer.encode(text) for text in REACTIONS]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
        ids[index, 2 : len(row) - 1 : 5] = tokenizer.mask_token_id
    return ids, mask


def test_albert_keeps_one_weight_for_all_layers(albert: ExportReport) -> None:
    uses = sorted(len(group.uses) for group in albert.manifest.ties)
    assert uses == [2, 12, 12, 12, 12, 12, 12]
    assert albert.manifest.task == "masked-lm"
    assert not equal_initializers(ir.load(albert.bundle.model_path))
    files = sum(albert.bundle.directory.joinpath(n).stat().st_size for n in ("model.onnx",))
    assert (files + albert.weights_bytes) / albert.unique_parameter_bytes < 1.10


def test_albert_fills_in_what_torch_does(albert: ExportReport) -> None:
    ids, mask = reactions(albert)
    logits = run(albert.bundle.model_path, ids, mask)
    model = transformers.AutoModelForMaskedLM.from_pretrained(rxnmapper()).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(ids), torch.from_numpy(mask)).logits.numpy()
    valid = mask.astype(bool)
    assert np.abs(logits - expected)[valid].max() < 1e-4 * np.abs(expected).max()
    masked = ids == Tokenizer.from_bundle(albert.bundle).mask_token_id
    assert masked.sum() > 10
    assert np.array_equal(logits.argmax(-1)[masked], expected.argmax(-1)[masked])


def test_int8_albert_keeps_its_ties_and_its_answers(albert: ExportReport, tmp_path: Path) -> None:
    report = quantize_model(albert.bundle.directory, tmp_path / "int8")
    assert sorted(len(g.uses) for g in report.manifest.ties) == [2, 12, 12, 12, 12, 12, 12]
    assert {group.dtype for group in report.manifest.ties} == {"UINT8"}
    ids, mask = reactions(albert)
    masked = ids == Tokenizer.from_bundle(albert.bundle).mask_token_id
    int8, fp32 = (run(b.bundle.model_path, ids, mask) for b in (report, albert))
    assert (int8.argmax(-1) == fp32.argmax(-1))[masked].mean() >= 0.9


@pytest.mark.parametrize("scheme", ["int8-static", "int8-static16"])
def test_shared_layers_in_graphs_for_npus(
    albert: ExportReport, tmp_path: Path, scheme: str
) -> None:
    """ONNX Runtime fails where two DequantizeLinear read one initializer."""
    report = quantize_model(albert.bundle, tmp_path / scheme, scheme=scheme)
    size = sum(path.stat().st_size for path in report.bundle.data_files)
    assert size < 0.3 * sum(path.stat().st_size for path in albert.bundle.data_files)
    checked = check_model(report.bundle, str(albert.bundle.directory))
    assert checked.relative_error < 0.3


def test_check_masks_tokens_and_scores_those(albert: ExportReport) -> None:
    report = check_model(albert.bundle, str(albert.bundle.directory), text="\n".join(REACTIONS * 8))
    assert isinstance(report, AccuracyReport)
    assert report.passed
    assert report.max_abs_error == 0
    assert 0.05 < report.tokens / report.positions < 0.25
    assert 1 < report.perplexity < 60  # it knows reactions; tokens by chance would be at 591
    assert np.isnan(report.greedy_agreement)


def test_a_masked_model_does_not_generate(albert: ExportReport) -> None:
    session = open_session(albert.bundle)
    with pytest.raises(BundleError, match="masked-lm"):
        Decoder(session, 1, 8)


@pytest.mark.parametrize(
    "name",
    ["Bert", "Roberta", "DistilBert", "Electra", "DebertaV2", "ModernBert", "Esm"],
)
def test_families(name: str, tmp_path: Path) -> None:
    extra = {
        "DistilBert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
        "DebertaV2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        "ModernBert": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
                       "cls_token_id": 1, "sep_token_id": 2},
        "Esm": {"pad_token_id": 1, "mask_token_id": 5},
    }  # fmt: skip
    torch.manual_seed(0)
    sizes = SIZES if name != "DistilBert" else {"vocab_size": 512}
    config = getattr(transformers, f"{name}Config")(
        **sizes, **extra.get(name, {}), **({"intermediate_size": 128} if sizes is SIZES else {})
    )
    module = getattr(transformers, f"{name}ForMaskedLM")(config).eval()
    source = Source("transformers", name, module, module.config, lambda target: None)
    assert source.task == "masked-lm"
    report = export_model(source, tmp_path / "bundle")
    assert report.agreement.relative < 1e-5
    assert report.agreement.padded > 0
    table = next(group for group in report.manifest.ties if group.shape[0] == 512)
    assert {use.op_type for use in table.uses} >= {"Gather"}
    assert len(table.uses) == 2
    assert find_ties(ir.load(report.bundle.model_path))
    onnx.checker.check_model(report.bundle.model_path)


def test_a_bare_file_is_known_to_fill_in_tokens(albert: ExportReport, tmp_path: Path) -> None:
    for name in ("model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(albert.bundle.directory / name, tmp_path / name)
    report = quantize_model(tmp_path / "model.onnx", tmp_path / "int8")
    assert report.manifest.task == "masked-lm"
    text = "\n".join(REACTIONS * 8)
    found = check_model(report.bundle, str(albert.bundle.directory), text=text)
    assert isinstance(found, AccuracyReport)
    assert found.mean_kl_divergence < 0.02
    with pytest.raises(BundleError, match="3 tokens are too few to measure predictions on"):
        check_model(albert.bundle, str(albert.bundle.directory), text=text, max_tokens=3)


def test_the_quickstart_times_forward_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, intermediate_size=128)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    report = quickstart(tmp_path / "out", model=str(tmp_path / "bert"))
    assert report.answers == ()
    assert report.accuracy.passed
    print_quickstart(report)
    printed = capsys.readouterr().out
    assert "time to read" in printed
    assert "text generation" not in printed


def test_bench_times_forward_passes_of_several_lengths(
    albert: ExportReport, tmp_path: Path
) -> None:
    report = bench_model(
        albert.bundle.directory, repeat=2, prompt_tokens=[8, 16], batch=2, timeline=True
    )
    assert [point.prompt_tokens for point in (report, *report.sweep)] == [8, 16]
    assert report.prefill_tokens_per_second == pytest.approx(
        statistics.median(16000 / run.prefill_ms for run in report.runs)
    )
    assert (report.new_tokens, report.decode_tokens_per_second, report.latency_ms) == (0, None, {})
    json.dumps(report.to_dict(), allow_nan=False)
    labels = [row[0] for row in resource_table(report).rows]
    assert labels[2:4] == ["forward pass, 8 tokens × 2", "forward pass, 16 tokens × 2"]
    assert [row[5] for row in speed_table(report).rows] == ["pp8 × 2", "pp16 × 2"]
    write_html(report, [], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Prompt of\n8 tokens, batch 2" in page
    with pytest.raises(BundleError, match=r"accepts \d+ tokens, not 10000; if the model"):
        bench_model(albert.bundle.directory, repeat=1, prompt_tokens=10_000)


def test_roberta_counts_positions_from_its_padding_token_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        **SIZES, intermediate_size=128, max_position_embeddings=130, pad_token_id=1
    )
    transformers.RobertaForMaskedLM(config).save_pretrained(tmp_path / "roberta")
    report = export_model(str(tmp_path / "roberta"), tmp_path / "bundle")
    assert report.manifest.signature.max_positions == 128
    checked = check_model(report.bundle, str(tmp_path / "roberta"), window=256)
    assert checked.relative_error < 1e-5
