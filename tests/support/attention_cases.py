"""Random GroupQueryAttention nodes, computed by edgetie's provider and by ONNX Runtime's own.

``python attention_cases.py FIRST_SEED COUNT`` prints the instruction set, then the cases whose
results differ.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from kernel_models import MICROSOFT, Arrays, build_model, nodes_taken, open_session
from onnx import helper

NAMES = (
    "query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length",
    "cos_cache", "sin_cache", "position_ids", "attention_bias", "head_sink", "k_scale", "v_scale",
)  # fmt: skip
OUTPUTS = ("output", "present_key", "present_value")
FEW = 8
"""Tokens that are computed one by one."""
FIXED = ("head_sink", "k_scale", "v_scale")
Attributes = dict[str, Any]


@dataclass
class Case:
    """One node: its attributes, its inputs, and whether the past's memory is the present's."""

    attributes: Attributes
    inputs: Arrays
    in_place: bool = False


def open_case(case: Case, *, plugin: bool, threads: int = 2) -> ort.InferenceSession:
    """Open the case's node in a model whose axes of batches and tokens are dynamic."""
    shapes: dict[str, list[int | str]] = {}
    for name, array in case.inputs.items():
        shapes[name] = [f"{name}_{axis}" for axis in range(array.ndim)]
        if name in FIXED:
            shapes[name] = list(array.shape)
        elif name in NAMES[:5]:
            shapes[name][-1] = array.shape[-1]
    names = [name if name in case.inputs else "" for name in NAMES]
    node = helper.make_node(
        "GroupQueryAttention", names, OUTPUTS, domain=MICROSOFT, **case.attributes
    )
    cache = case.inputs["past_key"].dtype if "past_key" in case.inputs else np.float32
    types = {"output": np.float32, "present_key": cache, "present_value": cache}
    inputs = {name: (array.dtype, shapes[name]) for name, array in case.inputs.items()}
    return open_session(build_model([node], {}, inputs, types), threads, plugin=plugin)


def run(case: Case, *, plugin: bool, threads: int = 2) -> list[np.ndarray]:
    """Compute the case's outputs with edgetie's provider, or with the CPU provider alone."""
    session = open_case(case, plugin=plugin, threads=threads)
    assert nodes_taken(session) == plugin
    binding = session.io_binding()
    arrays = {name: array.copy() for name, array in case.inputs.items()}  # OrtValues borrow them
    for name, array in arrays.items():
        value = ort.OrtValue.ortvalue_from_numpy(array)
        binding.bind_ortvalue_input(name, value)
        if case.in_place and name.startswith("past_"):
            binding.bind_ortvalue_output(name.replace("past", "present"), value)
    for name in OUTPUTS[: 1 if case.in_place else 3]:
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    order = ["present_key", "present_value", "output"] if case.in_place else list(OUTPUTS)
    outputs = [each.numpy().copy() for each in binding.get_outputs()]
    results = dict(zip(order, outputs, strict=True))
    return [results[name] for name in OUTPUTS]


def random_case(seed: int) -> Case:
    """Draw attributes, shapes and values that ONNX Runtime's own kernel computes."""
    rng = np.random.default_rng(seed)
    kv_heads = int(rng.integers(1, 4))
    heads = kv_heads * int(rng.choice([1, 2, 3, 4, 7, 8]))
    rotary = bool(rng.random() < 0.4)
    sizes = [16, 32, 48, 64, 80, 96, 128, 144, 256, 512] if rotary else [8, 16, 24, 40, 64, 72, 128]
    size = int(rng.choice(sizes))
    batch, tokens, past = _lengths(rng)
    total = past + tokens
    int8 = bool(rng.random() < 0.3)
    in_place = bool(rng.random() < 0.6)
    capacity = total + int(rng.integers(0, 20)) if in_place or int8 else past
    attributes: Attributes = {"num_heads": heads, "kv_num_heads": kv_heads}
    inputs = _tokens(rng, batch, tokens, heads, kv_heads, size)
    lengths = np.full(batch, total)
    if batch > 1 and rng.random() < 0.7:
        lengths = rng.integers(tokens if past else 1, total + 1, batch)
        lengths[0] = total
    inputs["seqlens_k"] = (lengths - 1).astype(np.int32)
    inputs["total_sequence_length"] = np.array(total, np.int32)
    if past or in_place or int8:
        inputs |= _past(rng, (batch, kv_heads, capacity, size), int8)
    if int8:
        _add_scales(rng, attributes, inputs, kv_heads, size)
    if rotary:
        _add_rotary(rng, attributes, inputs, total, size, past)
    _add_options(rng, attributes, inputs, total, size)
    return Case(attributes, inputs, in_place)


def _lengths(rng: np.random.Generator) -> tuple[int, int, int]:
    kind = rng.integers(0, 4)
    if kind == 0:  # a prompt
        return int(rng.integers(1, 4)), int(rng.choice([1, 2, 5, 17, 40, 90, 200])), 0
    if kind == 1:  # a part of a prompt
        return 1, int(rng.choice([2, 3, 8, 33, 70])), int(rng.choice([1, 7, 64, 100, 300]))
    past = int(rng.choice([0, 1, 2, 3, 15, 63, 64, 65, 127, 200, 511, 1000]))
    return int(rng.integers(1, 4)), 1, past


def _tokens(
    rng: np.random.Generator, batch: int, tokens: int, heads: int, kv_heads: int, size: int
) -> Arrays:
    def draw(count: int) -> np.ndarray:
        return rng.standard_normal((batch, tokens, count * size)).astype(np.float32) * 2

    if rng.random() < 0.5:
        return {"query": draw(heads + 2 * kv_heads)}
    return {"query": draw(heads), "key": draw(kv_heads), "value": draw(kv_heads)}


def _past(rng: np.random.Generator, shape: tuple[int, ...], int8: bool) -> Arrays:
    def draw() -> np.ndarray:
        if int8:
            return rng.integers(-128, 128, shape).astype(np.int8)
        return rng.standard_normal(shape).astype(np.float32)

    return {"past_key": draw(), "past_value": draw()}


def _add_scales(
    rng: np.random.Generator, attributes: Attributes,
    inputs: Arrays, kv_heads: int, size: int,
) -> None:  # fmt: skip
    by_channel = rng.random() < 0.6
    shape = (1, kv_heads, 1, size) if by_channel else (1,)
    for name in ("k_scale", "v_scale"):
        inputs[name] = rng.uniform(0.01, 0.05, shape).astype(np.float32)
    kind = "PER_CHANNEL" if by_channel else "PER_TENSOR"
    attributes.update(k_quant_type=kind, v_quant_type=kind, kv_cache_bit_width=8)


def _add_rotary(
    rng: np.random.Generator, attributes: Attributes,
    inputs: Arrays, total: int, size: int, past: int,
) -> None:  # fmt: skip
    rows = total + int(rng.integers(0, 9))
    half = 8 * int(rng.integers(1, size // 16 + 1)) if rng.random() < 0.3 else size // 2
    angles = rng.uniform(0, 6, (rows, half))
    inputs["cos_cache"] = np.cos(angles).astype(np.float32)
    inputs["sin_cache"] = np.sin(angles).astype(np.float32)
    attributes.update(do_rotary=1, rotary_interleaved=int(rng.integers(0, 2)))
    if rng.random() < 0.3:
        shape = inputs["query"].shape[:2]
        last = rows if past else rows - shape[1] + 1
        inputs["position_ids"] = rng.integers(0, last, shape).astype(np.int64)


def _add_options(
    rng: np.random.Generator, attributes: Attributes,
    inputs: Arrays, total: int, size: int,
) -> None:  # fmt: skip
    if rng.random() < 0.3:
        attributes["local_window_size"] = int(rng.integers(1, total + 10))
    elif rng.random() < 0.1:
        attributes["causal"] = 0
    if rng.random() < 0.2:
        attributes["softcap"] = float(rng.choice([1.0, 15.0, 50.0]))
    if rng.random() < 0.2:
        attributes["smooth_softmax"] = 1
    if rng.random() < 0.2:
        inputs["head_sink"] = rng.standard_normal(int(attributes["num_heads"])).astype(np.float32)
    if rng.random() < 0.3:
        attributes["scale"] = float(rng.uniform(0.3, 2) / size**0.5)


def differ(a: np.ndarray, b: np.ndarray) -> bool:
    """Say whether values of an int8 cache differ."""
    return a.dtype == np.int8 and bool((a != b).any())


def compare(case: Case, threads: int = 2) -> str:
    """Say where the two providers' outputs differ beyond rounding; empty if they do not."""
    expected, actual = run(case, plugin=False), run(case, plugin=True, threads=threads)
    lengths = case.inputs["seqlens_k"] + 1
    problems = []
    for name, a, b in zip(OUTPUTS, expected, actual, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            problems.append(f"{name}: {a.shape} {a.dtype} and {b.shape} {b.dtype}")
            continue
        if name == "output":  # of padding behind a prompt: unspecified
            for item, length in enumerate(lengths):
                a[item, length:] = b[item, length:] = 0
        x, y = a.astype(np.float64), b.astype(np.float64)
        allowed = 1 if a.dtype == np.int8 else 1e-5 * max(1.0, float(np.nanmax(np.abs(x))))
        if name == "output" and any(map(differ, expected[1:], actual[1:])):
            allowed *= 2000  # int8 rounded to the other side
        wrong = ~(np.abs(x - y) <= allowed) & ~(np.isnan(x) & np.isnan(y))
        if a.dtype == np.int8 and np.mean(x != y) > 1e-3:
            wrong = x != y
        if wrong.any():
            problems.append(
                f"{name}: {wrong.sum()} of {wrong.size}, by {np.nanmax(np.abs(x - y)):.3g}, "
                f"first at {tuple(int(i[0]) for i in wrong.nonzero())}"
            )
    return "; ".join(problems)


def compare_alone(case: Case) -> str:
    """Say which of few tokens has another result if it is computed alone, to the last bit.

    Proposed tokens are verified together and must have the results of single ones.
    """
    output, key, value = run(case, plugin=True)
    tokens, total = output.shape[1], int(case.inputs["total_sequence_length"])
    is_first, is_causal = tokens == total, case.attributes.get("causal", 1)
    if len(output) > 1 or tokens > FEW or is_first or not is_causal:
        return ""
    for token in range(tokens):
        inputs = {**case.inputs, "past_key": key, "past_value": value}
        for name in ("query", "key", "value", "position_ids"):
            if name in inputs:
                inputs[name] = np.ascontiguousarray(inputs[name][:, token : token + 1])
        last = total - tokens + token
        inputs["seqlens_k"] = np.array([last], np.int32)
        inputs["total_sequence_length"] = np.array(last + 1, np.int32)
        alone = run(Case(case.attributes, inputs, in_place=True), plugin=True)[0]
        if not np.array_equal(alone[:, 0], output[:, token]):
            return f"token {token} of {tokens} depends on the others"
    return ""


def describe(case: Case) -> str:
    """Describe attributes and shapes."""
    shapes = {name: array.shape for name, array in case.inputs.items()}
    return f"{case.attributes} {shapes} seqlens {case.inputs['seqlens_k']} {case.in_place=}"


def main() -> None:
    first, count = int(sys.argv[1]), int(sys.argv[2])
    for seed in range(first, first + count):
        case = random_case(seed)
        if problem := compare(case) or compare_alone(case):
            print(f"seed {seed}: {problem}: {describe(case)}")


if __name__ == "__main__":
    main()
