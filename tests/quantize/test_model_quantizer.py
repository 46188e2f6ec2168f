"""Rounding that compensates its errors, the head's two parts, and rotation that costs nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetie.graph.model_files import write_models
from edgetie.passes.gemm_to_matmul import GemmToMatMul
from edgetie.passes.run import run_passes
from edgetie.quantize.formats.matmul_nbits import MatMulNBitsFormat
from edgetie.quantize.preprocess.linear_inputs import find_linear_inputs
from edgetie.quantize.preprocess.rotate import Rotate
from edgetie.quantize.quantize_weights import QuantizeWeightsPass
from edgetie.quantize.weights.affine import (
    QuantizedValues,
    QuantSpec,
    choose_block,
    round_to_nearest,
)
from edgetie.quantize.weights.gptq import column_groups, gptq_quantize, hessian


def dequantized(rounded: QuantizedValues, spec: QuantSpec, columns: int) -> np.ndarray:
    width = spec.block or columns
    blocks = rounded.codes.reshape(len(rounded.codes), -1, width).astype(np.float32)
    zeros = spec.middle if rounded.zeros is None else rounded.zeros[..., None].astype(np.float32)
    values = (blocks - zeros) * rounded.scales[..., None]
    return values.reshape(len(values), -1)[:, :columns]


@pytest.mark.parametrize("columns", [64, 70, 448, 576, 1536])
@pytest.mark.parametrize("kind", ["blocks", "rows", "four bits", "four bits of both signs"])
def test_compensated_rounding_errs_less_in_the_product(columns: int, kind: str) -> None:
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(columns // 4, columns)).astype(np.float32)
    x = (rng.normal(size=(2000, columns // 4)) @ mixed).astype(np.float32)  # correlated channels
    rows = rng.normal(size=(50, columns)).astype(np.float32)
    block = choose_block(columns, 64 if kind == "blocks" else 32)
    spec = {
        "blocks": QuantSpec(8, block),
        "rows": QuantSpec(8),
        "four bits": QuantSpec(4, block, asymmetric=True, clip=True),
        "four bits of both signs": QuantSpec(4, block),
    }[kind]
    plain = dequantized(round_to_nearest(rows, spec), spec, columns)
    rounded = gptq_quantize(rows, spec, hessian(x))
    better = dequantized(rounded, spec, columns)
    assert np.linalg.norm(x @ (rows - better).T) < 0.9 * np.linalg.norm(x @ (rows - plain).T)
    # every weight stays near its own value
    assert np.abs(rows - better).max() < 8 * rounded.scales.max()


@pytest.mark.parametrize("block", [None, 16])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_nearest_is_within_half_a_step(block: int | None, asymmetric: bool) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 48)).astype(np.float32)
    rows[3] = 0  # a row of zeros
    rows[5] = np.abs(rows[5])
    spec = QuantSpec(8, block, asymmetric=asymmetric)
    rounded = round_to_nearest(rows, spec)
    errors = np.abs(dequantized(rounded, spec, 48) - rows).reshape(40, spec.count(48), -1)
    assert (errors <= 0.501 * rounded.scales[..., None]).all()
    assert (errors[3] == 0).all()


def test_zero_points_lower_the_squared_error() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32)
    errors = [
        np.square(dequantized(round_to_nearest(rows, spec), spec, 64) - rows).sum()
        for spec in (QuantSpec(8, 64), QuantSpec(8, 64, asymmetric=True))
    ]
    assert errors[1] < 0.87 * errors[0]


def test_clipping_lowers_the_squared_error() -> None:
    rows = np.random.default_rng(0).standard_t(3, size=(200, 64)).astype(np.float32)
    errors = [
        np.square(dequantized(round_to_nearest(rows, spec), spec, 64) - rows).sum()
        for spec in (QuantSpec(4, 32), QuantSpec(4, 32, clip=True))
    ]
    assert errors[1] < 0.97 * errors[0]


def test_regions_are_whole_blocks_and_hold_every_column() -> None:
    for columns in (16, 70, 576, 1536, 2048, 8192):
        count, width = column_groups(columns)
        assert count * width >= columns
        assert width % choose_block(columns) == 0
        assert width <= 768


def test_what_is_never_active_is_rounded_to_nearest() -> None:
    rows = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    rounded = gptq_quantize(rows, QuantSpec(8, 64), np.zeros((1, 64, 64), np.float32))
    expected = round_to_nearest(rows, QuantSpec(8, 64))
    np.testing.assert_allclose(rounded.scales, expected.scales, rtol=1e-6)
    errors = np.abs(dequantized(rounded, QuantSpec(8, 64), 64) - rows)
    assert errors.max() <= expected.scales.max() * 0.501


def head_model(path: Path, *, bias: bool) -> np.ndarray:
    """``logits = x Wᵀ + b`` over 400 tokens; returns W and writes the model."""
    rng = np.random.default_rng(0)
    values = {"w": rng.normal(size=(128, 400)).astype(np.float32)}
    made = "product" if bias else "logits"
    nodes = [helper.make_node("MatMul", ["x", "w"], [made], name="head")]
    if bias:
        values["b"] = rng.normal(size=400).astype(np.float32) * 10
        nodes.append(helper.make_node("Add", [made, "b"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence", 128])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", 400])],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return values.get("b", np.zeros(400, np.float32))


def run(model: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return session.run(["logits"], feeds)[0]


@pytest.mark.parametrize("aliased", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("opset", [17, 21])
def test_logits_come_from_activations_hardly_rounded(
    tmp_path: Path, bias: bool, aliased: bool, opset: int
) -> None:
    offset = head_model(tmp_path / "head.onnx", bias=bias)
    model = ir.load(tmp_path / "head.onnx")
    model.graph.opset_imports[""] = opset
    scheme = QuantizeWeightsPass(MatMulNBitsFormat(), MatMulNBitsFormat(aliased=aliased), {})
    run_passes(model, [], [scheme])
    values = model.graph.initializers
    same = {values[a]: values[b] for a, b in scheme.aliases.items() if a in values}
    (path,) = write_models({"m.onnx": model}, tmp_path, data="m.data", same=same)
    written = {name: v.const_value.numpy() for name, v in model.graph.initializers.items()}  # type: ignore[union-attr]
    rounded = QuantizedValues(
        written["w"].reshape(400, 128), written["w.T.scales"], written["w.T.zeros"]
    )
    matrix = dequantized(rounded, QuantSpec(8, 64, asymmetric=True), 128)
    x = np.random.default_rng(1).normal(size=(2, 3, 128)).astype(np.float32)
    x[0, 1, :64] = 0  # a block of zeros
    exact = x @ matrix.T + offset
    assert np.abs(run(path, {"x": x}) - exact).max() < 1e-4 * np.abs(exact).max()
    assert [value.name for value in model.graph.outputs] == ["logits"]


def attention_model(path: Path, *, packed: bool, bias: bool) -> None:
    """Q, K and V of 16 channels, 4 heads over 2, one attention, one projection behind it."""
    rng = np.random.default_rng(0)
    names = ["qkv"] if packed else ["q", "k", "v"]
    widths = dict(zip(names, [128] if packed else [64, 32, 32], strict=True))
    values = {
        n: rng.normal(size=(16, width)).astype(np.float32) * 0.3 for n, width in widths.items()
    }
    values["out"] = rng.normal(size=(64, 16)).astype(np.float32)
    nodes = []
    for name in names:
        made = f"{name}.made" if bias else f"{name}.states"
        nodes.append(helper.make_node("MatMul", ["x", name], [made]))
        if bias:
            values[f"{name}.bias"] = rng.normal(size=widths[name]).astype(np.float32)
            nodes.append(helper.make_node("Add", [made, f"{name}.bias"], [f"{name}.states"]))
    inputs = ["qkv.states", "", ""] if packed else ["q.states", "k.states", "v.states"]
    nodes += [
        helper.make_node(
            "GroupQueryAttention", [*inputs, "past_key", "past_value", "last", "total"],
            ["sums", "present_key", "present_value"],
            domain="com.microsoft", num_heads=4, kv_num_heads=2,
        ),
        helper.make_node("MatMul", ["sums", "out"], ["logits"]),
    ]  # fmt: skip
    cache = ["batch", 2, "past", 16]
    floats = {"x": ["batch", "sequence", 16], "past_key": cache, "past_value": cache}
    inputs_info = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in floats.items()
    ]
    inputs_info += [
        helper.make_tensor_value_info("last", TensorProto.INT32, ["batch"]),
        helper.make_tensor_value_info("total", TensorProto.INT32, [1]),
    ]
    outputs = {"logits": ["batch", "sequence", 16], "present_key": cache, "present_value": cache}
    graph = helper.make_graph(
        nodes,
        "attention",
        inputs_info,
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_values_are_rotated_without_a_node(tmp_path: Path, packed: bool, bias: bool) -> None:
    attention_model(tmp_path / "before.onnx", packed=packed, bias=bias)
    model = ir.load(tmp_path / "before.onnx")
    run_passes(model, [], [GemmToMatMul()])
    nodes = len(model.graph)
    rotate = Rotate([name for name in find_linear_inputs(model) if name == "sums"])
    run_passes(model, [], [rotate])
    ir.save(model, tmp_path / "after.onnx")
    assert (rotate.changed, rotate.free, len(model.graph)) == (1, 1, nodes)
    x = np.random.default_rng(1).normal(size=(1, 5, 16)).astype(np.float32)
    empty = np.zeros((1, 2, 0, 16), np.float32)
    feeds = {
        "x": x, "past_key": empty, "past_value": empty,
        "last": np.array([4], np.int32), "total": np.array([5], np.int32),
    }  # fmt: skip
    before, after = (run(tmp_path / f"{name}.onnx", feeds) for name in ("before", "after"))
    np.testing.assert_allclose(after, before, atol=1e-4)
    weights = {"before": ir.load(tmp_path / "before.onnx"), "after": model}
    changed = {n: m.graph.initializers["out"].const_value.numpy() for n, m in weights.items()}  # type: ignore[union-attr]
    assert not np.allclose(changed["before"], changed["after"])
