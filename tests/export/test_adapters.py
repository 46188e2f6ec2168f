"""Bundles with LoRA adapters compute what peft does; adapters of other bases are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from adapter_models import IDS, AdaptedBundle, largest_error, source, write_adapter_of
from models import transformers_model
from seq2seq_models import make

from edgetie.bundle.bundle import open_bundle
from edgetie.errors import EdgetieError, ExportError, SourceError
from edgetie.export.exporter import export_model
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.session import open_session
from edgetie.sources.source import Source


def test_each_adapter_computes_what_peft_does(adapted_bundle: AdaptedBundle) -> None:
    session = open_session(adapted_bundle.directory, threads=1)
    for name in (None, "small", "large", None):
        session.use_adapter(name)
        logits = Decoder(session, 1, len(IDS)).prefill(np.array([IDS]))[0]
        assert largest_error(logits, adapted_bundle.logits[name][-1]) < 1e-4
    others = adapted_bundle.logits["small"], adapted_bundle.logits["large"]
    assert min(largest_error(each, adapted_bundle.logits[None]) for each in others) > 0.05


def test_the_manifest_lists_adapters(adapted_bundle: AdaptedBundle) -> None:
    manifest = open_bundle(adapted_bundle.directory, hashes=True).manifest
    assert list(manifest.adapters) == ["small", "large"]
    assert (manifest.adapters["small"]["rank"], manifest.adapters["small"]["layers"]) == (2, 4)
    assert manifest.adapters["large"]["logit_error"] < 1e-4
    assert {"small.onnx_adapter", "large.onnx_adapter"} < manifest.files.keys()
    assert not any("lora" in value.name for value in manifest.signature.inputs)


def test_projections_stay_packed_and_the_table_tied(adapted_bundle: AdaptedBundle) -> None:
    graph = onnx.load(adapted_bundle.directory / "model.onnx", load_external_data=False).graph
    attention = next(node for node in graph.node if node.op_type == "GroupQueryAttention")
    assert attention.input[1] == attention.input[2] == ""
    (tie,) = open_bundle(adapted_bundle.directory).manifest.ties
    assert len(tie.uses) == 2


@pytest.mark.parametrize(
    ("kind", "targets"),
    [("GPT2", ["c_attn", "c_proj"]), ("Qwen2", ["q_proj", "k_proj"]), ("Phi", ["dense", "fc1"])],
)
def test_layers_with_biases(tmp_path: Path, kind: str, targets: list[str]) -> None:
    expected = write_adapter_of(
        transformers_model(kind), tmp_path / "adapter", r=3, target_modules=targets
    )
    export_model(source(kind), tmp_path / "bundle", adapters={"one": tmp_path / "adapter"})
    session = open_session(tmp_path / "bundle", threads=1)
    session.use_adapter("one")
    logits = Decoder(session, 1, len(IDS)).prefill(np.array([IDS]))[0]
    assert largest_error(logits, expected[-1]) < 1e-4


def test_standard_operators_and_fp16(adapted_bundle: AdaptedBundle, tmp_path: Path) -> None:
    for options in ({"target": "mobile-npu"}, {"precision": "fp16"}):
        folders = {"large": adapted_bundle.folders["large"]}
        export_model(source(), tmp_path / "b", adapters=folders, force=True, **options)
        session = open_session(tmp_path / "b", threads=1, provider="cpu")
        session.use_adapter("large")
        logits = Decoder(session, 1, len(IDS)).prefill(np.array([IDS]))[0]
        assert largest_error(logits, adapted_bundle.logits["large"][-1]) < 2e-2


def changed_base(**changes: Any) -> Source:
    model = transformers_model("Llama", **changes)
    return Source("transformers", "other", model, model.config, model.config.save_pretrained)


def test_adapters_of_other_bases_are_refused(adapted_bundle: AdaptedBundle, tmp_path: Path) -> None:
    folders = {"small": adapted_bundle.folders["small"]}
    message = "changes model.layers.1.self_attn.q_proj, which other does not have; it is an adapter"
    with pytest.raises(SourceError, match=re.escape(message)):
        export_model(changed_base(num_hidden_layers=1), tmp_path / "b", adapters=folders)
    message = "v_proj, from 64 to 32 channels, but that of other is from 64 to 64; it is an adapter"
    with pytest.raises(SourceError, match=re.escape(message)):
        export_model(changed_base(num_key_value_heads=4), tmp_path / "b", adapters=folders)
    model = make("T5")
    seq2seq = Source("transformers", "t5", model, model.config, model.config.save_pretrained)
    with pytest.raises(ExportError, match=r"seq2seq-lm, and adapters are switched in decoders"):
        export_model(seq2seq, tmp_path / "b", adapters=folders)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
@pytest.mark.parametrize(
    ("tied", "message"),
    [
        (True, "whose weight is the tied embedding table: merged, it would"),
        (False, "which is an embedding table or the head; merge it"),
    ],
)
def test_an_adapter_of_the_table_says_what_becomes_of_the_tie(
    tmp_path: Path, tied: bool, message: str, layer: str
) -> None:
    base = changed_base(tie_word_embeddings=tied)
    write_adapter_of(
        transformers_model("Llama", tie_word_embeddings=tied),
        tmp_path / "a", r=2, target_modules=[layer, "q_proj"],
    )  # fmt: skip
    with pytest.raises(ExportError, match=message):
        export_model(base, tmp_path / "b", adapters={"a": tmp_path / "a"})


@pytest.mark.parametrize("name", ["", "../a", "a/b", "ä", ".a", "a" * 65, "a b"])
def test_names_that_are_not_file_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(EdgetieError, match="not a name for an adapter"):
        export_model(source(), tmp_path / "b", adapters={name: tmp_path})
