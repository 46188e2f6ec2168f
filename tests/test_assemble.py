"""Files of other exporters become bundles that every command takes, or stay what they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from broken_models import LOOKUP, ROWS, broken, save, table
from onnx import helper
from split_decoders import WIDTH, write_split

from edgetie.bundle.bundle import open_bundle
from edgetie.errors import BundleError
from edgetie.harness.accuracy.check import check_model
from edgetie.harness.accuracy.references import resolve_reference
from edgetie.harness.ties.inspect import inspect_model
from edgetie.quantize.quantizer import quantize_model
from edgetie.repair import tie_model
from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.session import open_session

PROMPT, START = [7, 8, 9, 10, 11], 5


def write_settings(folder: Path) -> None:
    settings = {"decoder_start_token_id": START, "eos_token_id": 299, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")


def with_shape(path: Path, *shape: int | str) -> Path:
    """Declare the shape of the logits."""
    model = onnx.load(path)
    output = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, shape)
    model.graph.output[0].CopyFrom(output)
    onnx.save(model, path)
    return path


def run(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path)
    names = {value.name for value in session.get_inputs()}
    arrays = session.run(None, {name: feeds[name] for name in names})
    return dict(zip([value.name for value in session.get_outputs()], arrays, strict=True))


def greedy(files: list[Path], count: int) -> list[int]:
    """The tokens that the decoder for first tokens gives, which reads all of them each time."""
    ids = np.array([PROMPT])
    mask = np.ones_like(ids)
    hidden = run(files[0], {"input_ids": ids, "attention_mask": mask})["last_hidden_state"]
    tokens = [START]
    feeds = {"encoder_attention_mask": mask, "encoder_hidden_states": hidden}
    for _ in range(count):
        logits = run(files[1], feeds | {"input_ids": np.array([tokens])})["logits"]
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[1:]


@pytest.mark.parametrize("merged", [False, True])
def test_an_encoder_and_its_decoders_are_tied_quantized_checked_and_run(
    tmp_path: Path, merged: bool
) -> None:
    (tmp_path / "merged").mkdir()
    split = write_split(tmp_path)
    files = write_split(tmp_path / "merged", merged=True) if merged else split
    write_settings(files[0].parent)
    report = tie_model(files, tmp_path / "tied")
    assert (report.task, report.no_bundle) == ("seq2seq-lm", None)
    bundle = open_bundle(tmp_path / "tied", hashes=True)
    assert (bundle.manifest.source["kind"], bundle.manifest.precision) == ("onnx", "fp32")
    assert bundle.manifest.signature.start_token_ids == [START]
    assert bundle.manifest.unique_parameters == 300 * WIDTH + 3 * WIDTH**2
    uses = sorted(use.op_type for use in bundle.manifest.ties[0].uses)
    assert uses == ["Gather", "Gather", "Gemm"]
    assert inspect_model(bundle.directory).ties[0].file == 1
    steps = generate(open_session(bundle), [PROMPT], max_new_tokens=12)
    tokens = [int(step.tokens[0]) for step in steps]
    assert len(set(tokens)) > 1
    assert tokens == greedy(split, len(tokens))
    int8 = quantize_model(bundle.directory, tmp_path / "int8").bundle
    assert check_model(int8, resolve_reference(str(bundle.directory))).passed
    merged_file = onnx.load(tmp_path / "tied" / "decoder_model_merged.onnx")
    assert "use_cache_branch" in {value.name for value in merged_file.graph.input}


def test_one_file_becomes_a_bundle_with_the_settings_next_to_it(tmp_path: Path) -> None:
    write_settings(tmp_path)
    path = with_shape(broken(tmp_path / "broken.onnx", "duplicate"), 1, "sequence", ROWS)
    report = tie_model(path, tmp_path / "tied")
    bundle = open_bundle(tmp_path / "tied")
    assert report.task == bundle.task == "causal-lm"
    assert bundle.manifest.signature.eos_token_ids == [299]
    assert bundle.manifest.signature.max_positions == 64
    assert {path.name for path in bundle.files} == {
        "config.json", "edgetie.json", "model.onnx", "model.onnx.data",
    }  # fmt: skip
    tie_model(tmp_path / "broken.onnx", tmp_path / "tied", force=True)


def test_a_model_that_reads_later_tokens_is_a_masked_one(tmp_path: Path) -> None:
    nodes = [
        LOOKUP,
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"]),
        helper.make_node("Add", ["x", "mean"], ["y"]),
        helper.make_node("MatMul", ["y", "head"], ["logits"]),
    ]
    values = {"table": table(), "head": np.ascontiguousarray(table().T), "axes": np.array([1])}
    path = save(tmp_path / "masked.onnx", nodes, values)
    with_shape(path, 1, "sequence", ROWS)
    assert tie_model(path, tmp_path / "tied").task == "masked-lm"


def test_decoders_that_disagree_stay_files(tmp_path: Path) -> None:
    files = write_split(tmp_path, reads_one_token=True)
    report = tie_model(files, tmp_path / "tied")
    assert report.task is None
    assert report.no_bundle is not None
    assert "reads one at a time" in report.no_bundle
    names = {path.name for path in (tmp_path / "tied").iterdir()}
    assert names == {*(path.name for path in files), "model.onnx.data"}


def test_a_missing_decoder_is_named(tmp_path: Path) -> None:
    encoder, first, later = write_split(tmp_path)
    report = tie_model([encoder, first], tmp_path / "one")
    assert "decoder_with_past_model.onnx" in str(report.no_bundle)
    report = tie_model([encoder, later], tmp_path / "other")
    assert "decoder_model.onnx" in str(report.no_bundle)


def test_a_single_file_of_unknown_meaning_is_no_bundle(tmp_path: Path) -> None:
    labels = helper.make_node("MatMul", ["x", "head"], ["logits"])
    values = {"table": table(), "head": np.ones((WIDTH, 9), np.float32)}
    path = save(tmp_path / "classifier.onnx", [LOOKUP, labels], values)
    with_shape(path, 1, "sequence", 9)
    with pytest.raises(BundleError, match=r"row for each logit; name an output that ends in"):
        tie_model(path, tmp_path / "tied")
    assert not (tmp_path / "tied").exists()
    encoder, _, later = write_split(tmp_path)
    with pytest.raises(BundleError, match="which no single model does"):
        tie_model(later, tmp_path / "tied")
    with pytest.raises(BundleError, match="no input_ids or no logits"):
        tie_model(encoder, tmp_path / "tied")
