"""A tiny attention decoder in every form the runtime must run, and the same in plain numpy.

Two layers of multi-head attention over learned positions, a tied embedding. ``packed`` is the form
edgetie exports (GroupQueryAttention, logits of the last token, cache in place), ``plain`` the form
of other exporters (position_ids, a cache that grows by Concat, logits of all tokens), ``bare`` has
no cache.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgetie.bundle.manifest import Manifest, Signature, write_manifest
from edgetie.bundle.names import LAST_TOKEN_NODE

VOCAB, WIDTH, HEADS, LAYERS, POSITIONS = 320, 32, 2, 2, 48
HEAD = WIDTH // HEADS
SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>")
STOP = 2
CHAT_TEMPLATE = """{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor -%}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(scale=0.3, size=shape).astype(np.float32)

    found = {"table": normal(VOCAB, WIDTH), "positions": normal(POSITIONS, WIDTH)}
    for layer in range(LAYERS):
        found |= {f"{name}{layer}": normal(WIDTH, WIDTH) for name in "qkvo"}
    return found


def naive_logits(ids: list[int]) -> np.ndarray:
    """Logits ``(len(ids), VOCAB)`` of one sequence, in float64."""
    w = {name: value.astype(np.float64) for name, value in weights().items()}
    count = len(ids)
    x = w["table"][ids] + w["positions"][:count]
    for layer in range(LAYERS):
        q, k, v = (
            (x @ w[f"{name}{layer}"]).reshape(count, HEADS, HEAD).swapaxes(0, 1) for name in "qkv"
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(HEAD)
        scores[:, np.triu_indices(count, 1)[0], np.triu_indices(count, 1)[1]] = -np.inf
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True)) @ v
        x = x + mixed.swapaxes(0, 1).reshape(count, WIDTH) @ w[f"o{layer}"]
    return x @ w["table"].T


def naive_greedy(prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(naive_logits(ids)[-1].argmax()))
    return ids[len(prompt) :]


class _Graph:
    """Nodes, constants, inputs and outputs while a graph is being written."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors = [numpy_helper.from_array(value, name) for name, value in weights().items()]
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def add(
        self, op: str, *inputs: Any, outputs: list[str] | None = None, name: str = "", **attrs: Any
    ) -> str:
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        outputs = outputs or [f"node{len(self.nodes)}"]
        self.nodes.append(helper.make_node(op, names, outputs, name, **attrs))
        return outputs[0]

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        name = f"constant{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def input(self, name: str, shape: list[int | str], kind: int = TensorProto.INT64) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, shape: list[int | str]) -> str:
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def cache(self, layer: int) -> list[str]:
        """Names of one layer's cache: past key and value, present key and value."""
        shape: list[int | str] = ["batch", HEADS, "past", HEAD]
        past = [
            self.input(f"past_key_values.{layer}.{name}", shape, TensorProto.FLOAT)
            for name in ("key", "value")
        ]
        shape = ["batch", HEADS, "total", HEAD]
        return past + [self.output(f"present.{layer}.{name}", shape) for name in ("key", "value")]

    def save(self, path: Path) -> None:
        graph = helper.make_graph(self.nodes, "decoder", self.inputs, self.outputs, self.tensors)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(
            model,
            str(path),
            save_as_external_data=True,
            location=f"{path.name}.data",
            size_threshold=1024,
        )


def write_packed(directory: Path, *, last_before_head: bool = True) -> Path:
    """A bundle as edgetie exports it."""
    g = _Graph()
    ids = g.input("input_ids", ["batch", "sequence"])
    mask = g.input("attention_mask", ["batch", "total"])
    one = np.array([1], np.int64)
    count = g.add("Shape", ids, start=1, end=2)
    window = g.add("Slice", mask, g.add("Neg", count), np.array([1 << 40]), one)
    valid, new = g.add("ReduceSum", mask, one), g.add("ReduceSum", window, one)
    scalar = g.add("Squeeze", count)
    steps = g.add("Range", np.array(0), scalar, np.array(1))
    first = g.add("ArgMax", window, axis=1)
    place = g.add("Min", g.add("Add", steps, first), g.add("Sub", scalar, np.array(1)))
    packed = g.add("GatherElements", ids, place, axis=1)
    positions = g.add("Add", g.add("Sub", valid, new), steps)
    positions = g.add("Min", positions, np.array(POSITIONS - 1))
    seqlens = g.add("Cast", g.add("Sub", valid, np.array(1)), to=TensorProto.INT32)
    total = g.add("Cast", g.add("Shape", mask, start=1, end=2), to=TensorProto.INT32)
    x = g.add("Add", g.add("Gather", "table", packed), g.add("Gather", "positions", positions))
    for layer in range(LAYERS):
        q, k, v = (g.add("MatMul", x, f"{name}{layer}") for name in "qkv")
        past_key, past_value, key, value = g.cache(layer)
        mixed = g.add(
            "GroupQueryAttention", q, k, v, past_key, past_value, seqlens, total,
            outputs=[f"mixed{layer}", key, value], domain="com.microsoft",
            num_heads=HEADS, kv_num_heads=HEADS,
        )  # fmt: skip
        x = g.add("Add", x, g.add("MatMul", mixed, f"o{layer}"))
    last = g.add("Unsqueeze", g.add("Sub", new, np.array(1)), np.array([2]))
    head = g.add("Transpose", "table", perm=[1, 0])
    keep = {"name": LAST_TOKEN_NODE, "batch_dims": 1}
    if last_before_head:
        x = g.add("GatherND", x, last, **keep)
        g.add("MatMul", x, head, outputs=["logits"])
    else:
        g.add("GatherND", g.add("MatMul", x, head), last, outputs=["logits"], **keep)
    g.outputs.insert(
        0, helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, VOCAB])
    )
    g.save(directory / "model.onnx")
    signature = Signature([], [], "last", True, POSITIONS, VOCAB, [STOP])
    write_manifest(directory, Manifest({}, "causal-lm", "fp32", signature, [], 0))
    return directory


def byte_tokenizer() -> Any:
    """A byte-level BPE tokenizer of ``VOCAB`` tokens, trained on a few words."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = [
        "the user said hello there", "an assistant answers every question", "naïve café, ¿qué?",
        "once upon a time some small model learned to write short sentences",
    ]  # fmt: skip
    tokenizer.train_from_iterator(words * 20, trainer)
    assert tokenizer.get_vocab_size() == VOCAB
    assert tokenizer.token_to_id(SPECIAL[STOP]) == STOP
    return tokenizer


def write_chat_bundle(directory: Path) -> Path:
    """A ``packed`` bundle with a tokenizer and a chat template."""
    write_packed(directory)
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    pad, start, end = SPECIAL
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "bos_token": {"content": start, "special": True, "__type": "AddedToken"},
        "eos_token": end,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return directory


def write_plain(
    directory: Path, *, cached: bool = True, vocabulary: int | str = VOCAB, mask_input: bool = True
) -> Path:
    """A bare ONNX file, as other exporters write it; without a cache if not ``cached``."""
    g = _Graph()
    ids = g.input("input_ids", ["batch", "sequence"])
    count = g.add("Shape", ids, start=1, end=2)
    scalar = g.add("Squeeze", count)
    if mask_input:
        mask = g.input("attention_mask", ["batch", "total"])
        positions = g.input("position_ids", ["batch", "sequence"])
    else:
        mask = g.add("Add", g.add("Mul", ids, np.array(0)), np.array(1))
        positions = g.add("Range", np.array(0), scalar, np.array(1))
    total = g.add("Squeeze", g.add("Shape", mask, start=1, end=2))
    columns = g.add("Range", np.array(0), total, np.array(1))
    rows = g.add("Range", g.add("Sub", total, scalar), total, np.array(1))
    causal = g.add("LessOrEqual", columns, g.add("Unsqueeze", rows, np.array([1])))
    valid = g.add("Cast", g.add("Unsqueeze", mask, np.array([1, 2])), to=TensorProto.BOOL)
    allowed = g.add("And", valid, causal)
    x = g.add("Add", g.add("Gather", "table", ids), g.add("Gather", "positions", positions))
    split, joined = np.array([0, 0, HEADS, HEAD]), np.array([0, 0, WIDTH])
    for layer in range(LAYERS):
        q, k, v = (g.add("Reshape", g.add("MatMul", x, f"{name}{layer}"), split) for name in "qkv")
        q, k, v = (g.add("Transpose", each, perm=[0, 2, 1, 3]) for each in (q, k, v))
        if cached:
            past_key, past_value, key, value = g.cache(layer)
            k = g.add("Concat", past_key, k, outputs=[key], axis=2)
            v = g.add("Concat", past_value, v, outputs=[value], axis=2)
        scores = g.add("MatMul", q, g.add("Transpose", k, perm=[0, 1, 3, 2]))
        scores = g.add("Mul", scores, np.array(HEAD**-0.5, np.float32))
        scores = g.add("Where", allowed, scores, np.array(-1e9, np.float32))
        mixed = g.add("MatMul", g.add("Softmax", scores, axis=-1), v)
        mixed = g.add("Reshape", g.add("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
        x = g.add("Add", x, g.add("MatMul", mixed, f"o{layer}"))
    g.add("MatMul", x, g.add("Transpose", "table", perm=[1, 0]), outputs=["logits"])
    g.outputs.insert(
        0,
        helper.make_tensor_value_info(
            "logits", TensorProto.FLOAT, ["batch", "sequence", vocabulary]
        ),
    )
    g.save(directory / "model.onnx")
    return directory
