"""Rotary embeddings move into GroupQueryAttention."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from small_graphs import WIDTH, X, graph, leave, node, random, rewrite

from edgetie.passes.fuse_rotary import FuseRotary


def rotation(name: str, size: int, width: int) -> list:
    """Rotate the first ``width`` channels of ``name`` into ``{name}_rotated``."""
    whole = width == size
    x = name if whole else f"{name}_first"
    nodes = [
        node("Slice", [x, "half", "end", "last"], [f"{x}_2"]),
        node("Slice", [x, "zero", "half", "last"], [f"{x}_1"]),
        node("Neg", [f"{x}_2"], [f"{x}_neg"]),
        node("Concat", [f"{x}_neg", f"{x}_1"], [f"{x}_turned"], axis=-1),
        node("Mul", [x, "cos4"], [f"{x}_cos"]),
        node("Mul", [f"{x}_turned", "sin4"], [f"{x}_sin"]),
        node("Add", [f"{x}_cos", f"{x}_sin"], [f"{name}_rotated" if whole else f"{x}_rotated"]),
    ]
    if whole:
        return nodes
    return [
        node("Slice", [name, "zero", "width", "last"], [x]),
        node("Slice", [name, "width", "end", "last"], [f"{name}_rest"]),
        *nodes,
        node("Concat", [f"{x}_rotated", f"{name}_rest"], [f"{name}_rotated"], axis=-1),
    ]


def attention(size: int = 16, width: int = 16, angle: list | None = None) -> ir.Model:
    """Queries and keys of ``x``, rotated by position, and attention over them."""
    heads = WIDTH // size
    nodes = [
        node("Range", ["start", "length", "one"], ["range"]),
        node("Unsqueeze", ["range", "zero"], ["range2"]),
        node("Add", ["range2", "past"], ["positions"]),
        node("Cast", ["positions"], ["p"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["p", "minus"], ["p3"]),
        *(angle or [node("Mul", ["p3", "frequencies"], ["angles"])]),
        node("Concat", ["angles", "angles"], ["emb"], axis=-1),
        node("Cos", ["emb"], ["cos"]),
        node("Sin", ["emb"], ["sin"]),
        node("Unsqueeze", ["cos", "axis1"], ["cos4"]),
        node("Unsqueeze", ["sin", "axis1"], ["sin4"]),
    ]
    for name in "qk":
        nodes += [
            node("MatMul", ["x", f"w{name}"], [f"{name}0"]),
            node("Reshape", [f"{name}0", "split"], [f"{name}1"]),
            node("Transpose", [f"{name}1"], [name], perm=[0, 2, 1, 3]),
            *rotation(name, size, width),
            node("Transpose", [f"{name}_rotated"], [f"{name}2"], perm=[0, 2, 1, 3]),
            node("Reshape", [f"{name}2", "join"], [f"{name}3"]),
        ]
    nodes.append(
        node(
            "GroupQueryAttention", ["q3", "k3", "x", "", "", "lengths", "total"],
            ["y", "present_key", "present_value"], domain="com.microsoft", name="attention",
            num_heads=heads, kv_num_heads=heads,
        )
    )  # fmt: skip
    constants = {
        "start": np.int64(0), "length": np.int64(5), "one": np.int64(1), "past": np.array([[0]]),
        "zero": np.array([0]), "minus": np.array([-1]), "axis1": np.array([1]),
        "frequencies": np.float32(10000 ** (-np.arange(width // 2) / (width // 2)))[None, None],
        "half": np.array([width // 2]), "width": np.array([width]), "last": np.array([-1]),
        "end": np.array([(1 << 63) - 1]), "split": np.array([2, 5, heads, size]),
        "join": np.array([2, 5, WIDTH]),
        "wq": random(WIDTH, WIDTH) / 8, "wk": random(WIDTH, WIDTH, seed=1) / 8,
        "lengths": np.array([4, 4], np.int32), "total": np.array(5, np.int32),
    }  # fmt: skip
    shapes = {"positions": [1, 5], "cos": [1, 5, width], "sin": [1, 5, width]}
    shapes |= {name: [2, heads, 5, size] for name in "qk"}
    shapes |= {f"{name}_first": [2, heads, 5, width] for name in "qk"}
    return graph(nodes, constants, shapes=shapes, types={"positions": TensorProto.INT64})


@pytest.mark.parametrize(("size", "width"), [(16, 16), (32, 16)])
def test_whole_and_partial_rotations_move_into_attention(size: int, width: int) -> None:
    model = attention(size, width)
    operators = rewrite(model, FuseRotary(64), x=X)
    assert operators["Neg"] == 0
    assert operators["Range"] == 2, "one for each table, folded when a session starts"
    node = next(n for n in model.graph if n.op_type == "GroupQueryAttention")
    assert node.attributes["do_rotary"].as_int() == 1
    assert [value.name for value in node.inputs[7:9]] == ["rotary.cos.0", "rotary.sin.0"]
    large = {v.name for v in model.graph.initializers.values() if v.const_value.size >= 1024}
    assert large == {"wq", "wk"}, "no table is stored"


@pytest.mark.parametrize(
    ("max_positions", "reason"), [(None, "no longest sequence"), (64, "more than the position")]
)
def test_what_cannot_be_fused_is_named(max_positions: int | None, reason: str) -> None:
    longest = [  # angles scaled by the longest position
        node("ReduceMax", ["p3"], ["longest"]),
        node("Mul", ["p3", "longest"], ["scaled"]),
        node("Mul", ["scaled", "frequencies"], ["angles"]),
    ]
    step = FuseRotary(max_positions)
    leave(attention(angle=longest if max_positions else None), step)
    assert len(step.skipped) == 1
    assert reason in step.skipped[0]


def test_angles_of_another_input_are_not_fused() -> None:
    total = [
        node("ReduceSum", ["x"], ["sum"], keepdims=0),
        node("Mul", ["p3", "sum"], ["scaled"]),
        node("Mul", ["scaled", "frequencies"], ["angles"]),
    ]
    step = FuseRotary(64)
    leave(attention(angle=total), step)
    assert step.skipped == ["attention: angles that depend on more than the position"]


def test_odd_head_sizes_are_named() -> None:
    step = FuseRotary(64)
    leave(attention(size=8, width=8), step)
    assert step.skipped == ["attention: head size 8"]


def test_tables_that_no_session_could_hold() -> None:
    step = FuseRotary(1 << 31)
    leave(attention(), step)
    assert step.skipped == ["attention: tables of 2147483648 positions are too large"]
