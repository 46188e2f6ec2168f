"""Each pass on a small graph: the same numbers before and after, and what it promised."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetie.bundle.names import LAST_TOKEN_NODE
from edgetie.passes.base import GraphPass
from edgetie.passes.cancel_transposes import CancelTransposes
from edgetie.passes.fuse_activation import FuseActivation
from edgetie.passes.fuse_rms_norm import FuseRmsNorm
from edgetie.passes.fuse_skip_norm import FuseSkipNorm
from edgetie.passes.gemm_to_matmul import GemmToMatMul
from edgetie.passes.merge_duplicates import MergeDuplicates
from edgetie.passes.pack_projections import PackProjections
from edgetie.passes.run import run_passes
from edgetie.passes.select_last_token import SelectLastToken
from edgetie.passes.tied_head_gemm import TiedHeadGemm
from edgetie.ties.groups import find_ties

WIDTH = 64
RNG = np.random.default_rng(0)
SHAPE = ["batch", "sequence", WIDTH]


def graph(
    nodes: list[Any],
    constants: dict[str, Any],
    inputs: dict[str, list[Any]] | None = None,
    output: list[Any] | None = None,
    shapes: dict[str, list[Any]] | None = None,
) -> ir.Model:
    """A graph of opset 23 whose output is ``y``; ``shapes`` annotates values in between."""
    inputs = inputs or {"x": SHAPE}
    proto = helper.make_graph(
        nodes,
        "piece",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output or SHAPE)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
        value_info=[
            helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
            for n, s in (shapes or {}).items()
        ],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return ir.serde.deserialize_model(helper.make_model(proto, opset_imports=opsets, ir_version=10))


def run(model: ir.Model, **feeds: Any) -> np.ndarray:
    data = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def rewritten(model: ir.Model, step: GraphPass, **feeds: Any) -> Counter[str]:
    """Run a pass; the result must not change. Returns the operators left."""
    before = run(model, **feeds)
    run_passes(model, find_ties(model), [step])
    assert step.changed
    np.testing.assert_allclose(run(model, **feeds), before, rtol=1e-4, atol=1e-5)
    return Counter(node.op_type for node in model.graph)


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


X = random(2, 5, WIDTH)
node = helper.make_node


def test_linear_turns_gemm_into_matmul() -> None:
    weight, bias = random(WIDTH, WIDTH), random(WIDTH)
    model = graph(
        [
            node("Reshape", ["x", "flat"], ["x2"]),
            node("Gemm", ["x2", "w", "b"], ["y2"], transB=1),
            node("Reshape", ["y2", "whole"], ["y"]),
        ],
        {"w": weight, "b": bias, "flat": [-1, WIDTH], "whole": [2, 5, WIDTH]},
        {"x": [2, 5, WIDTH]},
        [2, 5, WIDTH],
        {"x2": [10, WIDTH], "y2": [10, WIDTH]},
    )
    left = rewritten(model, GemmToMatMul(), x=X)
    assert left == {"MatMul": 1, "Add": 1}
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), weight.T)


def test_rms_norm() -> None:
    model = graph(
        [
            node("Pow", ["x", "two"], ["squared"]),
            node("ReduceMean", ["squared", "last"], ["mean"], keepdims=1),
            node("Add", ["mean", "eps"], ["shifted"]),
            node("Sqrt", ["shifted"], ["root"]),
            node("Reciprocal", ["root"], ["inverse"]),
            node("Mul", ["x", "inverse"], ["normed"]),
            node("Mul", ["weight", "normed"], ["y"]),
        ],
        {
            "two": np.float32(2),
            "last": np.array([-1]),
            "eps": np.float32(1e-5),
            "weight": random(WIDTH),
        },
    )
    assert rewritten(model, FuseRmsNorm(), x=X) == {"RMSNormalization": 1}


@pytest.mark.parametrize("norm", ["RMSNormalization", "LayerNormalization"])
def test_skip_norm_gives_the_sum_too(norm: str) -> None:
    extra = ["bias"] if norm == "LayerNormalization" else []
    model = graph(
        [
            node("Add", ["x", "z"], ["sum"]),
            node(norm, ["sum", "weight", *extra], ["normed"], axis=-1, epsilon=1e-5, name="norm"),
            node("Mul", ["normed", "sum"], ["y"]),
        ],
        {"weight": random(WIDTH)} | ({"bias": random(WIDTH)} if extra else {}),
        {"x": SHAPE, "z": SHAPE},
        shapes={"sum": SHAPE},
    )
    left = rewritten(model, FuseSkipNorm(), x=X, z=random(2, 5, WIDTH))
    assert left["Add"] == 0
    assert sum(count for name, count in left.items() if name.startswith("Skip")) == 1


def test_activations() -> None:
    silu = graph([node("Sigmoid", ["x"], ["s"]), node("Mul", ["x", "s"], ["y"])], {})
    assert rewritten(silu, FuseActivation(), x=X) == {"QuickGelu": 1}
    gelu = graph(
        [
            node("Pow", ["x", "three"], ["cube"]),
            node("Mul", ["cube", "c"], ["scaled"]),
            node("Add", ["x", "scaled"], ["inner"]),
            node("Mul", ["inner", "k"], ["arg"]),
            node("Tanh", ["arg"], ["t"]),
            node("Add", ["t", "one"], ["p"]),
            node("Mul", ["x", "half"], ["h"]),
            node("Mul", ["h", "p"], ["y"]),
        ],
        {
            "three": np.float32(3),
            "c": np.float32(0.044715),
            "k": np.float32(np.sqrt(2 / np.pi)),
            "one": np.float32(1),
            "half": np.float32(0.5),
        },
    )
    assert rewritten(gelu, FuseActivation(), x=X) == {"FastGelu": 1}


def test_layout_removes_pairs_that_undo_each_other() -> None:
    heads = ["batch", "sequence", 4, WIDTH // 4]
    turned = ["batch", 4, "sequence", WIDTH // 4]
    model = graph(
        [
            node("Reshape", ["x", "split"], ["h"]),
            node("Transpose", ["h"], ["t"], perm=[0, 2, 1, 3]),
            node("RMSNormalization", ["t", "weight"], ["n"], axis=-1),
            node("Transpose", ["n"], ["back"], perm=[0, 2, 1, 3]),
            node("Reshape", ["back", "join"], ["y"]),
        ],
        {
            "split": np.array([2, 5, 4, WIDTH // 4]),
            "join": np.array([2, 5, WIDTH]),
            "weight": random(WIDTH // 4),
        },
        shapes={"h": heads, "t": turned, "n": turned, "back": heads},
    )
    left = rewritten(model, CancelTransposes(), x=X)
    assert left == {"Reshape": 2, "RMSNormalization": 1}


@pytest.mark.parametrize("biased", [False, True])
def test_projections_of_one_input_become_one(biased: bool) -> None:
    nodes, constants = [], {}
    for name in "abc":
        nodes.append(node("MatMul", ["x", f"w{name}"], [f"p{name}"]))
        constants[f"w{name}"] = random(WIDTH, WIDTH)
        if biased:
            nodes.append(node("Add", [f"p{name}", f"b{name}"], [f"r{name}"]))
            constants[f"b{name}"] = random(WIDTH)
    letter = "r" if biased else "p"
    nodes += [
        node("Mul", [f"{letter}a", f"{letter}b"], ["m"]),
        node("Sub", ["m", f"{letter}c"], ["y"]),
    ]
    shapes = {f"{kind}{name}": SHAPE for kind in "pr" for name in "abc"}
    model = graph(nodes, constants, shapes=shapes)
    left = rewritten(model, PackProjections(), x=X)
    assert left["MatMul"] == 1
    assert left["Split"] == 1
    assert left["Add"] == int(biased)


def tied_head(rows: int) -> ir.Model:
    return graph(
        [
            node("Gather", ["table", "ids"], ["bias"], name="lookup"),
            node("Add", ["x", "bias"], ["h"]),
            node("Transpose", ["table"], ["turned"], perm=[1, 0]),
            node("MatMul", ["h", "turned"], ["y"], name="head"),
        ],
        {"table": random(rows, WIDTH), "ids": np.array([3])},
        output=["batch", "sequence", rows],
        shapes={"h": SHAPE},
    )


def test_head_reads_the_table_as_it_is_stored() -> None:
    model = tied_head(96)
    left = rewritten(model, TiedHeadGemm(), x=X)
    assert left["Transpose"] == 0
    (tie,) = find_ties(model)
    assert {(use.op_type, use.input) for use in tie.uses} == {("Gather", 0), ("Gemm", 1)}


def test_last_token_moves_above_the_head() -> None:
    model = graph(
        [
            node("RMSNormalization", ["x", "weight"], ["h"], axis=-1),
            node("Transpose", ["table"], ["turned"], perm=[1, 0]),
            node("MatMul", ["h", "turned"], ["logits"]),
            node("Mul", ["logits", "factor"], ["scaled"]),
            node("GatherND", ["scaled", "at"], ["y"], batch_dims=1, name=LAST_TOKEN_NODE),
        ],
        {
            "weight": random(WIDTH),
            "table": random(96, WIDTH),
            "factor": np.float32(2),
            "at": np.array([[[4]], [[1]]]),
        },
        {"x": [2, "sequence", WIDTH]},
        [2, 1, 96],
        shapes={n: [2, "sequence", w] for n, w in (("h", WIDTH), ("logits", 96), ("scaled", 96))},
    )
    rewritten(model, SelectLastToken(), x=X)
    select = next(n for n in model.graph if n.name == LAST_TOKEN_NODE)
    assert select.inputs[0] is model.graph.inputs[0], "above the head and its norm"


def test_equal_weights_become_one() -> None:
    table = random(WIDTH, WIDTH)
    model = graph(
        [node("MatMul", ["x", "a"], ["m"]), node("MatMul", ["m", "b"], ["y"])],
        {"a": table, "b": table.copy()},
    )
    rewritten(model, MergeDuplicates(), x=X)
    assert len(model.graph.initializers) == 1
