"""Checkpoints whose names, sizes or precisions differ from those of the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from edgetie.errors import SourceError
from edgetie.sources.checkpoint import require_weights
from edgetie.sources.load import load_source

TABLE, HEAD, QUERY = "model.embed_tokens.weight", "lm_head.weight", "layers.1.self_attn.q_proj"
IDS = torch.arange(3, 40)[None]

Weights = dict[str, torch.Tensor]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    models.transformers_model("Llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(directory: Path, change: Callable[[Weights], Weights], **settings: Any) -> Path:
    """Change the weights and the configuration of a saved model."""
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
    config = directory / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return directory


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module(IDS).logits


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"my.student.{name}",
        lambda name: f"module.{name.removeprefix('model.')}",
        lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
        lambda name: name.replace("mlp", "_fsdp_wrapped_module._checkpoint_wrapped_module.mlp"),
    ],
)
def test_names_with_the_prefixes_of_wrappers_are_read(
    saved: Path, rename: Callable[[str], str]
) -> None:
    expected = logits(load_source(str(saved)).module)
    rewrite(saved, lambda weights: {rename(name): weights[name] for name in weights})
    source = load_source(str(saved))
    assert torch.equal(logits(source.module), expected)
    assert source.module.lm_head.weight is source.module.model.embed_tokens.weight
    assert source.unused == []


def test_names_of_two_models_are_refused_and_shown(saved: Path) -> None:
    def double(weights: Weights) -> Weights:
        pairs = [(f"{who}.{name}", name) for name in weights for who in ("big", "small")]
        return {new: weights[name].clone() for new, name in pairs}

    rewrite(saved, double)
    with pytest.raises(SourceError, match=r"21 weights .*which have big\.model\.embed_tokens"):
        load_source(str(saved))


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_adapters_that_are_not_merged_are_refused(saved: Path, prefix: str) -> None:
    def add_adapter(weights: Weights) -> Weights:
        result = {prefix + name: tensor for name, tensor in weights.items()}
        return result | {f"{prefix}model.{QUERY}.lora_A.default.weight": torch.ones(4, 64)}

    with pytest.raises(SourceError, match=r"of an adapter \(model\..*lora_A.*merge"):
        load_source(str(rewrite(saved, add_adapter)))


@pytest.mark.parametrize("size", [300, 328])
def test_another_vocabulary_is_refused_with_both_sizes(saved: Path, size: int) -> None:
    rewrite(saved, dict, vocab_size=size)
    with pytest.raises(SourceError, match=rf"vocab_size of {size}, but {TABLE} has 320 rows"):
        load_source(str(saved))


def test_a_tied_head_of_another_size_is_refused_with_both_sizes(saved: Path) -> None:
    rewrite(saved, lambda weights: weights | {HEAD: torch.ones(328, 64)})
    with pytest.raises(SourceError, match=rf"vocab_size of 320, but {HEAD} has 328 rows"):
        load_source(str(saved))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rounded", [TABLE, HEAD])
def test_a_tied_head_of_another_precision_is_tied_to_the_finer_one(
    saved: Path, rounded: str, dtype: torch.dtype
) -> None:
    expected = load_source(str(saved)).module.model.embed_tokens.weight
    rewrite(saved, lambda w: w | {HEAD: w[TABLE].clone()} | {rounded: w[TABLE].to(dtype)})
    module = load_source(str(saved)).module
    assert module.lm_head.weight is module.model.embed_tokens.weight
    assert torch.equal(module.lm_head.weight, expected)


def test_other_heads_stay_what_they_are(saved: Path) -> None:
    rewrite(saved, lambda weights: weights | {HEAD: torch.ones(320, 64)})
    module = load_source(str(saved)).module
    assert torch.equal(module.lm_head.weight, torch.ones(320, 64))
    rewrite(saved, lambda w: w | {HEAD: w[TABLE].half()}, tie_word_embeddings=False)
    module = load_source(str(saved)).module
    assert torch.equal(module.lm_head.weight, module.model.embed_tokens.weight.half().float())
    assert not torch.equal(module.lm_head.weight, module.model.embed_tokens.weight)


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "hqq"}, "hqq"),
    ],
)
def test_quantized_checkpoints_are_refused_with_a_way_out(
    saved: Path, settings: dict[str, Any], method: str
) -> None:
    rewrite(saved, dict, quantization_config=settings)
    with pytest.raises(SourceError, match=rf"\({method}\).*export the float model") as refused:
        load_source(str(saved))
    assert "pip" not in str(refused.value)


def test_weights_of_a_classifier_are_refused_by_its_class(tmp_path: Path) -> None:
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16}
    config = transformers.BertConfig(num_hidden_layers=1, num_attention_heads=2, **sizes)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(SourceError, match=r"those of BertForSequenceClassification, as config"):
        load_source(str(tmp_path))


def test_missing_and_mismatched_weights_are_refused() -> None:
    nothing: dict[str, Any] = {"mismatched_keys": [], "missing_keys": [], "unexpected_keys": []}
    require_weights("m", nothing)
    with pytest.raises(SourceError, match=r"2 weights of the model are not among .*\(a, \.\.\.\)"):
        require_weights("m", nothing | {"missing_keys": ["b", "a"]})
    with pytest.raises(SourceError, match=r"1 weights .*\(w is 1×3 there and 2×4 in the model"):
        require_weights("m", nothing | {"mismatched_keys": [("w", (1, 3), (2, 4))]})
