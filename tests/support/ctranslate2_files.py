"""Reading CTranslate2's ``model.bin``, and making transformers' Whisper of one."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
VERSION = 6

LAYER = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_0": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_1": "encoder_attn.k_proj encoder_attn.v_proj",
    "attention/linear_2": "encoder_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
"""CTranslate2's name of a layer's part, and transformers'; several where one matrix holds them."""

OUTSIDE = {
    "conv1": "conv1",
    "conv2": "conv2",
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
    "layer_norm": "layer_norm",
}


def read(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file by name; aliases are the same array."""
    data, at = path.read_bytes(), 0

    def number(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{kind}", data, at)
        at += struct.calcsize(kind)
        return int(value)

    def text() -> str:
        nonlocal at
        size = number("H")  # with a zero byte at the end
        at += size
        return data[at - size : at - 1].decode()

    assert number("I") == VERSION, path
    text(), number("I")  # what the model is, and a revision of that
    tensors = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype = np.dtype(DTYPES[number("B")])
        size = number("I")
        tensors[name] = np.frombuffer(data, dtype, size // dtype.itemsize, at).reshape(shape)
        at += size
    for _ in range(number("I")):
        alias, name = text(), text()
        tensors[alias] = tensors[name]
    assert at == len(data), path
    return tensors


def whisper_weights(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Weights under transformers' names; each key projection has a bias of zeros to leave out."""
    weights = {}
    for name, array in tensors.items():
        if array.ndim == 0 or array.dtype != np.float16 or name == "decoder/projection/weight":
            continue
        side, *path, kind = name.split("/")
        kind = {"gamma": "weight", "beta": "bias", "encodings": "weight"}.get(kind, kind)
        if path[0].startswith("layer_") and path[0] != "layer_norm":
            prefix = f"model.{side}.layers.{path[0].removeprefix('layer_')}"
            targets = LAYER["/".join(path[1:])].split()
        else:
            prefix, targets = f"model.{side}", [OUTSIDE[path[0]]]
        parts = np.split(array.astype(np.float32), len(targets))
        for target, part in zip(targets, parts, strict=True):
            if target.endswith("k_proj") and kind == "bias":
                assert not part.any()
                continue
            weights[f"{prefix}.{target}.{kind}"] = torch.from_numpy(part.copy())
    return weights


def write_whisper(source: Path, target: Path) -> None:
    """Convert a directory of CTranslate2's with an English Whisper to one of transformers'."""
    tensors = read(source / "model.bin")
    settings = json.loads((source / "config.json").read_text("utf-8"))
    tokens = (source / "vocabulary.txt").read_text("utf-8").split("\n")
    ids = {token: index for index, token in enumerate(tokens)}
    start, end = ids["<|startoftranscript|>"], ids["<|endoftext|>"]
    table = tensors["decoder/embeddings/weight"]
    sizes = _sizes(tensors)
    special: dict[str, Any] = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
    }
    config = transformers.WhisperConfig(
        vocab_size=table.shape[0], d_model=table.shape[1], **sizes, **special
    )
    model = transformers.WhisperForConditionalGeneration(config)
    missing, unexpected = model.load_state_dict(whisper_weights(tensors), strict=False)
    assert (missing, unexpected) == (["proj_out.weight"], [])
    model.tie_weights()
    model.generation_config = transformers.GenerationConfig(
        **special,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        no_timestamps_token_id=ids["<|notimestamps|>"],
        is_multilingual=False,
        max_length=config.max_target_positions,
    )
    model.save_pretrained(target)
    transformers.WhisperFeatureExtractor(config.num_mel_bins).save_pretrained(target)
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (target / "tokenizer_config.json").write_text(json.dumps(tokenizer))


def _sizes(tensors: dict[str, np.ndarray]) -> dict[str, int]:
    sizes = {"num_mel_bins": tensors["encoder/conv1/weight"].shape[1]}
    for side, kind in (("encoder", "source"), ("decoder", "target")):
        positions = tensors[f"{side}/position_encodings/encodings"]
        layers = {n.split("/")[1] for n in tensors if n.startswith(f"{side}/layer_")}
        sizes[f"max_{kind}_positions"] = positions.shape[0]
        sizes[f"{side}_layers"] = len(layers - {"layer_norm"})
        sizes[f"{side}_attention_heads"] = int(tensors[f"{side}/num_heads"])
        sizes[f"{side}_ffn_dim"] = tensors[f"{side}/layer_0/ffn/linear_0/weight"].shape[0]
    return sizes
