"""MatMulNBits and GatherBlockQuantized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantized_values import dequantized

from edgetie.graph.model_files import write_models
from edgetie.passes.run import run_passes
from edgetie.quantize.formats.matmul_nbits import MatMulNBitsFormat
from edgetie.quantize.quantize_weights import QuantizeWeightsPass
from edgetie.quantize.weights.affine import (
    QuantizedValues,
    QuantSpec,
)


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
