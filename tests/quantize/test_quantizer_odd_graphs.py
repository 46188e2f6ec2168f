"""Plain ONNX files of shapes that exporters of language models seldom write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from runtime_models import byte_tokenizer

from edgetie.errors import QuantizeError
from edgetie.harness.accuracy.thresholds import Thresholds
from edgetie.quantize.quantizer import quantize_model

ROWS, WIDTH = 320, 64
IDS = np.random.default_rng(1).integers(0, ROWS, (2, 7))
RANDOM = np.random.default_rng(0)
SEQUENCE = ["batch", "sequence"]
node, floats = helper.make_node, TensorProto.FLOAT


def uniform(*shape: int) -> np.ndarray:
    return (RANDOM.normal(size=shape) / 8).astype(np.float32)


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def value(name: str, shape: list[int | str] | None, kind: int = floats) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def branch(name: str, made: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph([made], name, [], [value(made.output[0], [*SEQUENCE, WIDTH])])


def write(
    folder: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    outputs: dict[str, list[int | str] | None] | None = None,
    ids: int = TensorProto.INT64,
    opset: int = 21,
    inputs: tuple[str, ...] = (),
) -> Path:
    """A graph that makes ``logits`` of ``input_ids``.

    Args:
        outputs: others that it has.
        ids: the type of tokens.
        inputs: names of weights that are declared as inputs too.
    """
    made = outputs or {}
    graph = helper.make_graph(
        nodes,
        "odd",
        [
            value("input_ids", list(SEQUENCE), ids),
            *(value(name, list(weights[name].shape)) for name in inputs),
        ],
        [value("logits", [*SEQUENCE, ROWS]), *(value(n, shape) for n, shape in made.items())],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    onnx.checker.check_model(model)
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def run(path: Path, ids: np.ndarray = IDS) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = np.int32 if "int32" in session.get_inputs()[0].type else np.int64
    return session.run(names, {"input_ids": ids.astype(wanted)})


def all_close(folder: Path, path: Path, scheme: str = "int8", ids: np.ndarray = IDS) -> Path:
    """Quantize, and hold every output to the float model's."""
    report = quantize_model(path, folder / "out", scheme=scheme)
    made = report.bundle.model_path
    for expected, found in zip(run(path, ids), run(made, ids), strict=True):
        assert found.shape == expected.shape
        assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)
    return made


LOOKUP = node("Gather", ["table", "input_ids"], ["x"])
NORM = node("LayerNormalization", ["x", "gain"], ["h"], axis=-1)
HEAD = [
    node("Transpose", ["table"], ["turned"], perm=[1, 0]),
    node("MatMul", ["h", "turned"], ["logits"]),
]


def tied() -> dict[str, np.ndarray]:
    table = uniform(ROWS, WIDTH)
    table[:, ::17] *= 8  # smoothing has something to do
    return {"table": table, "gain": np.linspace(0.5, 1.5, WIDTH, dtype=np.float32)}


@pytest.mark.parametrize("scheme", ["int8", "int8-mapped"])
def test_what_is_looked_up_is_an_output_too(tmp_path: Path, scheme: str) -> None:
    path = write(tmp_path, [LOOKUP, NORM, *HEAD], tied(), outputs={"x": [*SEQUENCE, WIDTH]})
    all_close(tmp_path, path, scheme)


@pytest.mark.parametrize("scheme", ["int8", "int8-mapped", "int8-static16"])
def test_what_is_looked_up_is_a_branch_s_output(tmp_path: Path, scheme: str) -> None:
    nodes = [
        node("ReduceMax", ["input_ids"], ["largest"], keepdims=0),
        node("Greater", ["largest", "fifty"], ["large"]),
        node(
            "If", ["large"], ["x"],
            then_branch=branch("then", node("Gather", ["table", "input_ids"], ["one"])),
            else_branch=branch("else", node("Gather", ["table", "input_ids"], ["other"])),
        ),
        NORM, *HEAD,
    ]  # fmt: skip
    path = write(tmp_path, nodes, tied() | {"fifty": np.array(50)})
    all_close(tmp_path, path, scheme)
    for ids in (IDS, IDS % 40):
        expected, found = run(path, ids)[0], run(tmp_path / "out" / "model.onnx", ids)[0]
        assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def test_half_of_a_gate_is_an_output_too(tmp_path: Path) -> None:
    up = uniform(WIDTH, 128)
    up[:, ::9] *= 20
    nodes = [
        LOOKUP,
        node("MatMul", ["x", "up"], ["u"]),
        node("Add", ["u", "bias"], ["wide"]),
        node("MatMul", ["x", "gate"], ["g"]),
        node("Sigmoid", ["g"], ["s"]),
        node("Mul", ["wide", "s"], ["m"]),
        node("MatMul", ["m", "down"], ["h"]),
        *HEAD,
    ]
    weights = tied() | {"up": up, "bias": uniform(128)}
    weights |= {"gate": uniform(WIDTH, 128), "down": uniform(128, WIDTH)}
    path = write(tmp_path, nodes, weights, outputs={"u": [*SEQUENCE, 128]})
    all_close(tmp_path, path)


@pytest.mark.parametrize("gain", ["constant", "computed"])
def test_a_norm_whose_gain_is_no_initializer(tmp_path: Path, gain: str) -> None:
    weights = tied()
    array = weights.pop("gain")
    if gain == "constant":
        made = node("Constant", [], ["gain"], value=numpy_helper.from_array(array))
    else:
        weights |= {"less": array - 1, "one": np.ones(1, np.float32)}
        made = node("Add", ["less", "one"], ["gain"])
    all_close(tmp_path, write(tmp_path, [LOOKUP, made, NORM, *HEAD], weights))


def test_attention_over_flattened_heads(tmp_path: Path) -> None:
    """Reshapes around a product of two activations are no flattened tokens."""
    heads = numbers(-1, 7, 16)
    nodes = [
        LOOKUP,
        node("Reshape", ["x", "split"], ["parts"]),
        node("Transpose", ["parts"], ["heads"], perm=[0, 2, 1, 3]),
        node("Reshape", ["heads", "flat"], ["q"]),
        node("Transpose", ["q"], ["k"], perm=[0, 2, 1]),
        node("MatMul", ["q", "k"], ["s"]),
        node("Reshape", ["s", "scores"], ["scored"]),
        node("Softmax", ["scored"], ["p"], axis=-1),
        node("MatMul", ["p", "heads"], ["mixed"]),
        node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        node("Reshape", ["back", "join"], ["y"]),
        node("MatMul", ["y", "w"], ["h"]),
        *HEAD,
    ]
    weights = {"table": tied()["table"], "w": uniform(WIDTH, WIDTH), "split": numbers(0, 0, 4, 16)}
    weights |= {"flat": heads, "scores": numbers(-1, 4, 7, 7), "join": numbers(0, 0, WIDTH)}
    all_close(tmp_path, write(tmp_path, nodes, weights))


def test_a_bias_in_a_branch_belongs_to_that(tmp_path: Path) -> None:
    nodes = [
        LOOKUP,
        node("MatMul", ["x", "w"], ["a"]),
        node("ReduceMax", ["input_ids"], ["largest"], keepdims=0),
        node("Greater", ["largest", "fifty"], ["large"]),
        node(
            "If", ["large"], ["h"],
            then_branch=branch("then", node("Add", ["a", "bias"], ["one"])),
            else_branch=branch("else", node("Identity", ["x"], ["other"])),
        ),
        *HEAD,
    ]  # fmt: skip
    weights = {"table": tied()["table"], "w": uniform(WIDTH, WIDTH), "bias": uniform(WIDTH)}
    path = write(tmp_path, nodes, weights | {"fifty": np.array(50)})
    all_close(tmp_path, path)


def test_products_in_a_loop_are_calibrated(tmp_path: Path) -> None:
    """And stay in floating point where ONNX Runtime does not take them there."""
    body = helper.make_graph(
        [
            node("MatMul", ["state", "w"], ["next"]),
            node("Tanh", ["next"], ["squashed"]),
            node("Identity", ["going"], ["on"]),
        ],
        "body",
        [
            value("step", [], TensorProto.INT64),
            value("going", [], TensorProto.BOOL),
            value("state", [*SEQUENCE, WIDTH]),
        ],
        [value("on", [], TensorProto.BOOL), value("squashed", [*SEQUENCE, WIDTH])],
    )
    nodes = [
        LOOKUP,
        node("Loop", ["three", "true", "x"], ["y"], body=body),
        node("MatMul", ["y", "w2"], ["h"]),
        *HEAD,
    ]
    weights = {"table": tied()["table"], "w": uniform(WIDTH, WIDTH), "w2": uniform(WIDTH, WIDTH)}
    weights |= {"three": np.array(3), "true": np.array(True)}
    path = write(tmp_path, nodes, weights)
    for scheme in ("int8", "int8-static16"):
        report = quantize_model(path, tmp_path / scheme, scheme=scheme)
        assert "tokens of" in report.manifest.quantization["calibration"]
        expected, found = run(path)[0], run(report.bundle.model_path)[0]
        assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)
        assert [note.split(":")[0] for note in report.float_weights] == (
            ["w"] if scheme != "int8" else []
        )


def test_weights_that_are_inputs_too(tmp_path: Path) -> None:
    """As in files of IR version 3."""
    weights = tied()
    path = write(tmp_path, [LOOKUP, NORM, *HEAD], weights, inputs=tuple(weights))
    all_close(tmp_path, path)


def test_tokens_of_32_bits(tmp_path: Path) -> None:
    path = write(tmp_path, [LOOKUP, NORM, *HEAD], tied(), ids=TensorProto.INT32)
    all_close(tmp_path, path, "int8-static16")
    report = quantize_model(path, tmp_path / "limited", limits=Thresholds(max_kl=0.1), force=True)
    assert 0 < report.manifest.quantization["measured"]["kl"] < 0.1


def test_the_sum_of_a_table_becomes_a_constant(tmp_path: Path) -> None:
    nodes = [
        LOOKUP,
        node("MatMul", ["x", "w"], ["y"]),
        node("ReduceSum", ["table", "first"], ["sum"], keepdims=1),
        node("Add", ["y", "sum"], ["h"]),
        node("MatMul", ["h", "head"], ["logits"]),
    ]
    weights = {"table": tied()["table"], "w": uniform(WIDTH, WIDTH), "head": uniform(WIDTH, ROWS)}
    path = write(tmp_path, nodes, weights | {"first": numbers(0)})
    made = onnx.load(all_close(tmp_path, path))
    kinds = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert kinds["table"] == kinds["w"] == TensorProto.UINT8
    assert kinds["sum.folded"] == floats


def test_a_turned_table_that_is_an_output_is_dequantized(tmp_path: Path) -> None:
    nodes = [LOOKUP, node("MatMul", ["x", "w"], ["h"]), *HEAD]
    weights = {"table": tied()["table"], "w": uniform(WIDTH, WIDTH)}
    path = write(tmp_path, nodes, weights, outputs={"turned": [WIDTH, ROWS]})
    report = quantize_model(path, tmp_path / "out")
    for expected, found in zip(run(path), run(report.bundle.model_path), strict=True):
        assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)
    assert (report.float_weights, report.dequantized) == ((), {"table": "Transpose"})


def test_tokens_beyond_a_table_of_positions(tmp_path: Path) -> None:
    """The smallest table that is looked up in need not be that of tokens."""
    nodes = [
        LOOKUP,
        node("Shape", ["input_ids"], ["sizes"]),
        node("Gather", ["sizes", "one"], ["length"]),
        node("Range", ["zero", "length", "one"], ["places"]),
        node("Gather", ["positions", "places"], ["p"]),
        node("Add", ["x", "p"], ["h"]),
        *HEAD,
    ]
    weights = {"table": tied()["table"], "positions": uniform(128, WIDTH)}
    path = write(tmp_path, nodes, weights | {"zero": np.array(0), "one": np.array(1)})
    tokenizer = byte_tokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "the user said hello there, " * 40
    assert ROWS > max(tokenizer.encode(text).ids) >= 128
    count = len(tokenizer.encode(text).ids)
    report = quantize_model(path, tmp_path / "out", calibration=text)
    assert report.manifest.quantization["calibration"] == f"{count} tokens of own text"


def test_axes_exchanged_around_a_weight_on_the_left(tmp_path: Path) -> None:
    nodes = [
        LOOKUP,
        node("Transpose", ["x"], ["turned_x"], perm=[0, 2, 1]),
        node("MatMul", ["w", "turned_x"], ["columns"]),
        node("Transpose", ["columns"], ["y"], perm=[2, 0, 1]),  # tokens first
        node("MatMul", ["y", "head"], ["swapped"]),
        node("Transpose", ["swapped"], ["logits"], perm=[1, 0, 2]),
    ]
    weights = {"table": tied()["table"], "w": uniform(96, WIDTH), "head": uniform(96, ROWS)}
    all_close(tmp_path, write(tmp_path, nodes, weights))


def test_unnamed_nodes_beside_angles_compute_in_16_bits(tmp_path: Path) -> None:
    nodes = [
        LOOKUP,
        node("Cos", ["x"], ["angles"]),
        node("MatMul", ["angles", "w"], ["h"]),
        *HEAD,
    ]
    path = write(tmp_path, nodes, {"table": tied()["table"], "w": uniform(WIDTH, WIDTH)})
    report = quantize_model(path, tmp_path / "out", scheme="fp16")
    graph = onnx.load(report.bundle.model_path).graph
    casts = [n for n in graph.node if n.op_type == "Cast" and n.input[0] in ("w", "table")]
    assert len(casts) <= 1  # of the table, which cosines are computed of


def test_limits_that_16_bits_break(tmp_path: Path) -> None:
    path = write(tmp_path, [LOOKUP, NORM, *HEAD], tied())
    with pytest.raises(QuantizeError, match="with all weights of 16 bits, KL divergence"):
        quantize_model(path, tmp_path / "out", scheme="fp16", limits=Thresholds(max_kl=1e-12))
    assert not (tmp_path / "out").exists()
