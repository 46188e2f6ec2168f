"""Checkpoints with quantized weights: parts, names, copies, and checks of what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from quantized_checkpoints import Array, random_integers, write_checkpoint
from safetensors.torch import load_file, save_file

from edgetie.errors import SourceError
from edgetie.sources.load import load_source

TABLE, HEAD = "model.embed_tokens", "lm_head"
UP = "model.layers.0.mlp.up_proj"


def layer(module: str, shape: tuple[int, int]) -> dict[str, Array]:
    each = random_integers(shape, 8, None, symmetric=True)
    values = (each.values.astype(np.int16) - 128).astype(np.int8)
    return {"weight": values, "SCB": each.scales[:, 0] * np.float32(127)}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return write_checkpoint(
        tmp_path / "model", settings, layer, quantized=lambda n: "_proj" in n or n == TABLE
    )


def rewrite(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def test_a_checkpoint_of_several_files_with_names_of_a_wrapper_is_read(saved: Path) -> None:
    expected = load_source(str(saved))
    tensors = {f"module.{n}": t for n, t in load_file(saved / "model.safetensors").items()}
    (saved / "model.safetensors").unlink()
    parts = {name: f"model-{i % 2 + 1}-of-2.safetensors" for i, name in enumerate(tensors)}
    for part in set(parts.values()):
        names = [name for name in tensors if parts[name] == part]
        save_file({name: tensors[name] for name in names}, saved / part, {"format": "pt"})
    index = {"metadata": {}, "weight_map": parts}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    source = load_source(str(saved))
    assert source.quantized.keys() == expected.quantized.keys()
    for name, parameter in expected.module.named_parameters():
        assert torch.equal(source.module.get_parameter(name), parameter)


def test_a_tied_table_that_is_stored_twice_is_one(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    copies = {f"{HEAD}.{n}": tensors[f"{TABLE}.{n}"].clone() for n in ("weight", "SCB")}
    rewrite(saved, tensors | copies)
    source = load_source(str(saved))
    assert source.module.lm_head.weight is source.module.model.embed_tokens.weight
    assert f"{TABLE}.weight" in source.quantized
    assert f"{HEAD}.weight" not in source.quantized


def test_missing_weights_and_tensors_are_named(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    rewrite(saved, {n: t for n, t in tensors.items() if not n.startswith(UP)})
    with pytest.raises(SourceError, match=rf"1 weights of the model .*{UP}\.weight"):
        load_source(str(saved))
    rewrite(saved, {n: t for n, t in tensors.items() if n != f"{UP}.weight"})
    with pytest.raises(SourceError, match=rf"has no tensor {UP}\.weight"):
        load_source(str(saved))


def test_weights_that_transformers_joins_are_dequantized_only(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "vocab_size": 64}
    config = transformers.MixtralConfig(
        **sizes, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    expert = next(name for name in tensors if ".experts.0." in name).removesuffix(".weight")
    shape = tensors.pop(f"{expert}.weight").shape
    quantized = {f"{expert}.{n}": torch.from_numpy(a) for n, a in layer("", tuple(shape)).items()}
    rewrite(tmp_path, tensors | quantized)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    path.write_text(json.dumps(settings))
    with pytest.raises(SourceError, match=r"experts\.0\.w\d\.weight .*in another form") as refused:
        load_source(str(tmp_path))
    assert refused.value.advice == {"dequantize": True}
    assert not load_source(str(tmp_path), dequantize=True).quantized


def test_a_models_own_code_is_loaded_with_permission(saved: Path) -> None:
    path = saved / "config.json"
    own = {"auto_map": {"AutoModelForCausalLM": "own.OwnModel"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    (saved / "own.py").write_text(
        "from transformers import LlamaForCausalLM\n\n\n"
        "class OwnModel(LlamaForCausalLM):\n    pass\n"
    )
    source = load_source(str(saved), trust_remote_code=True)
    assert source.architecture == "OwnModel"
    assert f"{UP}.weight" in source.quantized


def test_pickled_weights_are_refused(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    torch.save(tensors, saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"\(bitsandbytes\).*export the float model"):
        load_source(str(saved), allow_pickle=True)


def test_loading_leaves_transformers_as_it_was(saved: Path) -> None:
    before = transformers.PreTrainedModel._load_pretrained_model
    load_source(str(saved))
    assert transformers.PreTrainedModel._load_pretrained_model is before
