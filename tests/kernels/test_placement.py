"""Which nodes edgetie's provider takes: those that it computes right, no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from kernel_models import MICROSOFT, Arrays, build_model, nodes_taken, open_session
from onnx import TensorProto, helper, numpy_helper

RANDOM = np.random.default_rng(0)
Single = tuple[bytes, Arrays]


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def scales(*shape: int) -> np.ndarray:
    return floats(*shape) / 100


def values(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, np.uint8)


def single(
    node: Any, arrays: Arrays, inputs: tuple[str, ...], constants: tuple[str, ...] = ()
) -> Single:
    """Return a model whose ``inputs`` are of dynamic shape, and what to feed.

    ``constants`` are inputs with that default.
    """
    used = {name: array for name, array in arrays.items() if name in node.input}
    model = build_model(
        [node],
        {name: array for name, array in used.items() if name not in inputs},
        {
            name: (used[name].dtype, [f"{name}_{axis}" for axis in range(used[name].ndim)])
            for name in inputs
        }
        | {name: (used[name].dtype, list(used[name].shape)) for name in constants},
        used["scales" if "scales" in used else "x"].dtype,
    )
    return model, {name: used[name] for name in inputs}


def matmul(
    *dynamic: str, extra: str = "", constants: tuple[str, ...] = (), **changes: Any
) -> Single:
    """Return ``x (3, 64)`` times a matrix (8, 64) of 4 bits in blocks of 32, with zero points.

    Args:
        dynamic: names of arrays that are inputs of the model.
        extra: an optional input to add: ``group_index`` or ``bias``.
        constants: names of constants that are inputs as well.
        changes: other arrays or attributes.
    """
    arrays = {
        "x": floats(3, 64), "weights": values(8, 2, 16), "scales": scales(8, 2),
        "zero_points": values(8, 1), "group_index": np.arange(64, dtype=np.int32) // 32,
        "bias": floats(8),
    }  # fmt: skip
    attributes = {"N": 8, "K": 64, "block_size": 32, "bits": 4}
    attributes |= {name: value for name, value in changes.items() if name not in arrays}
    arrays |= {name: value for name, value in changes.items() if name in arrays}
    names = ["x", "weights", "scales", "zero_points", "", ""]
    if extra:
        names[["group_index", "bias"].index(extra) + 4] = extra
    node = helper.make_node("MatMulNBits", names, ["y"], domain=MICROSOFT, **attributes)
    return single(node, arrays, ("x", *dynamic), constants)


def gather(*dynamic: str, **changes: Any) -> Single:
    """Return a lookup in a table (6, 64) of 8 bits in blocks of 32, with zero points."""
    arrays = {
        "ids": np.array([[1, 2], [0, -1]]), "table": values(6, 64), "scales": scales(6, 2),
        "zero_points": values(6, 2),
    }  # fmt: skip
    attributes = {"block_size": 32, "bits": 8, "gather_axis": 0, "quantize_axis": 1}
    attributes |= {name: value for name, value in changes.items() if name not in arrays}
    arrays |= {name: value for name, value in changes.items() if name in arrays}
    names = ["table", "ids", "scales", "zero_points"]
    node = helper.make_node("GatherBlockQuantized", names, ["y"], domain=MICROSOFT, **attributes)
    return single(node, arrays, ("ids", *dynamic))


def norm(operator: str, *dynamic: str, outputs: tuple[str, ...] = ("y",), **changes: Any) -> Single:
    """Return an RMS norm of ``x (2, 3, 16)``."""
    arrays = {"x": floats(2, 3, 16), "skip": floats(2, 3, 16), "gain": floats(16)}
    attributes = {name: value for name, value in changes.items() if name not in arrays}
    arrays |= {name: value for name, value in changes.items() if name in arrays}
    skips = operator.startswith("Skip")
    names = ["x", "skip", "gain"] if skips else ["x", "gain"]
    node = helper.make_node(
        operator, names, outputs, domain=MICROSOFT if skips else "", **attributes
    )
    return single(node, arrays, ("x", *names[1:-1], *dynamic))


RMS, SIMPLIFIED, SKIP = (
    "RMSNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization",
)  # fmt: skip
HALF = {"x": floats(2, 3, 16).astype(np.float16), "gain": floats(16).astype(np.float16)}

TAKEN: dict[str, Callable[[], Single]] = {
    "matmul": matmul,
    "matmul with bias": lambda: matmul(extra="bias"),
    "matmul, flat scales": lambda: matmul(scales=scales(16)),
    "matmul of a vector": lambda: matmul(x=floats(64)),
    "matmul of five axes": lambda: matmul(x=floats(1, 2, 1, 3, 64)),
    "matmul that allows int8": lambda: matmul(accuracy_level=4),
    "gather": gather,
    "gather, axes from the end": lambda: gather(gather_axis=-2, quantize_axis=-1),
    "rms norm": lambda: norm(RMS),
    "rms norm, axis from the start": lambda: norm(RMS, axis=2),
    "simplified norm": lambda: norm(SIMPLIFIED),
    "skip norm": lambda: norm(SKIP),
    "skip norm with sum": lambda: norm(SKIP, outputs=("y", "", "", "sum")),
    "skip norm of two axes": lambda: norm(SKIP, x=floats(6, 16), skip=floats(6, 16)),
    "skip norm, half of the batch": lambda: norm(SKIP, x=floats(4, 3, 16)),
}

LEFT: dict[str, Callable[[], Single]] = {
    "matmul, weights computed": lambda: matmul("weights"),
    "matmul, scales computed": lambda: matmul("scales"),
    "matmul, zero points computed": lambda: matmul("zero_points"),
    "matmul, bias computed": lambda: matmul("bias", extra="bias"),
    "matmul, weights may be fed": lambda: matmul(constants=("weights",)),
    "matmul, group index": lambda: matmul(extra="group_index"),
    "matmul, float16": lambda: matmul(
        x=floats(3, 64).astype(np.float16), scales=scales(8, 2).astype(np.float16)
    ),
    "matmul, zero points of floats": lambda: matmul(zero_points=floats(8, 2)),
    "matmul, 2 bits": lambda: matmul(bits=2, weights=values(8, 2, 8)),
    "matmul, weights in another order": lambda: matmul(weight_prepacked=1),
    "matmul, block of 8": lambda: matmul(
        block_size=8, weights=values(8, 8, 4), scales=scales(8, 8), zero_points=values(8, 4)
    ),
    "matmul, block of 12": lambda: matmul(
        block_size=12, weights=values(8, 6, 6), scales=scales(8, 6), zero_points=values(8, 3)
    ),
    "matmul, too few scales": lambda: matmul(scales=scales(8, 1)),
    "matmul, too few weights": lambda: matmul(weights=values(8, 1, 16)),
    "matmul, too few zero points": lambda: matmul(zero_points=values(7, 1)),
    "matmul, too short a bias": lambda: matmul(extra="bias", bias=floats(7)),
    "gather, table computed": lambda: gather("table"),
    "gather, scales computed": lambda: gather("scales"),
    "gather, zero points computed": lambda: gather("zero_points"),
    "gather, float16": lambda: gather(scales=scales(6, 2).astype(np.float16)),
    "gather, other gather axis": lambda: gather(gather_axis=1),
    "gather, other quantize axis": lambda: gather(
        quantize_axis=0, scales=scales(1, 64), zero_points=values(1, 64)
    ),
    "gather, rows of broken blocks": lambda: gather(
        table=values(6, 2, 40), scales=scales(6, 2, 2), zero_points=values(6, 2, 2), quantize_axis=2
    ),
    "gather, rows of broken zero points": lambda: gather(
        table=values(6, 2, 48), scales=scales(6, 2, 3), zero_points=values(6, 2, 2),
        quantize_axis=2, bits=4,
    ),
    "gather, too few scales": lambda: gather(scales=scales(6, 1)),
    "gather, too few zero points": lambda: gather(zero_points=values(6, 1)),
    "rms norm, other axis": lambda: norm(RMS, axis=1, gain=floats(3, 16)),
    "rms norm, gain of unknown size": lambda: norm(RMS, "gain"),
    "rms norm, one gain": lambda: norm(RMS, gain=floats(1)),
    "rms norm, gain of two axes": lambda: norm(RMS, gain=floats(1, 16)),
    "rms norm, float16": lambda: norm(RMS, **HALF),
    "rms norm, float16 sums": lambda: norm(RMS, stash_type=10),
    "simplified norm, other axis": lambda: norm(SIMPLIFIED, axis=1),
    "simplified norm with deviation": lambda: norm(SIMPLIFIED, outputs=("y", "deviation")),
    "skip norm, float16": lambda: norm(SKIP, skip=HALF["x"], **HALF),
    "skip norm with mean": lambda: norm(SKIP, outputs=("y", "mean")),
    "skip norm with deviation": lambda: norm(SKIP, outputs=("y", "", "deviation")),
}  # fmt: skip

WRONG: dict[str, tuple[Callable[[], Single], str]] = {
    "matmul, other columns": (lambda: matmul(x=floats(3, 32)), "has not K = 64 elements"),
    "gather, index too large": (lambda: gather(ids=np.array([5, 6])), "index 6 is outside of"),
    "gather, index too small": (lambda: gather(ids=np.array([-6, -7])), "index -7 is outside of"),
    "gather, index beyond 32 bits": (
        lambda: gather(ids=np.array([2**62])), "index 4611686018427387904 is outside of",
    ),
    "rms norm, short gain": (lambda: norm(RMS, gain=floats(15)), "the scale has not one value"),
    "skip norm, short gain": (
        lambda: norm(SKIP, gain=floats(15)), "the scale has not one value",
    ),
    "skip norm, other tokens": (
        lambda: norm(SKIP, x=floats(2, 4, 16), skip=floats(2, 2, 16)), "skip does not fit",
    ),
    "skip norm, other items": (lambda: norm(SKIP, skip=floats(3, 3, 16)), "skip does not fit"),
    "skip norm, short skip": (lambda: norm(SKIP, skip=floats(2, 3, 8)), "skip does not fit"),
    "skip norm, skip of one axis": (lambda: norm(SKIP, skip=floats(16)), "skip does not fit"),
}  # fmt: skip


def outcome(model: bytes, feeds: Arrays, *, plugin: bool) -> tuple[Any, int]:
    """Return outputs or the error, and the number of nodes taken."""
    taken = 0
    try:
        session = open_session(model, plugin=plugin)
        taken = nodes_taken(session)
        return session.run(None, feeds), taken
    except Exception as error:
        return str(error), taken


@pytest.mark.parametrize("name", TAKEN)
def test_taken_nodes_equal_the_cpu_provider(name: str) -> None:
    model, feeds = TAKEN[name]()
    outputs, taken = outcome(model, feeds, plugin=True)
    assert taken == 1
    for ours, cpu in zip(outputs, outcome(model, feeds, plugin=False)[0], strict=True):
        tolerance = 0.02 if "int8" in name else 1e-4  # there the CPU provider rounds to 8 bits
        np.testing.assert_allclose(ours, cpu, rtol=0, atol=tolerance * np.abs(cpu).max())


@pytest.mark.parametrize("name", LEFT)
def test_other_nodes_are_left_to_the_cpu_provider(name: str) -> None:
    model, feeds = LEFT[name]()
    ours, taken = outcome(model, feeds, plugin=True)
    cpu, _ = outcome(model, feeds, plugin=False)
    assert taken == 0
    if isinstance(cpu, str):
        assert ours == cpu
    else:
        for one, other in zip(ours, cpu, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_a_clear_error(name: str) -> None:
    build, message = WRONG[name]
    result, taken = outcome(*build(), plugin=True)
    assert taken == 1
    assert message in result


def branch(node: Any, constants: Arrays, *, outer: bool) -> bytes:
    """Return ``y = node(x) if condition else x`` with the constants outside or in the branch."""
    result, other = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in (node.output[0], "z")
    )
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(
        [
            helper.make_node(
                "If", ["condition"], ["y"],
                then_branch=helper.make_graph(
                    [node], "then", [], [result], [] if outer else tensors
                ),
                else_branch=helper.make_graph(
                    [helper.make_node("Identity", ["x"], ["z"])], "else", [], [other]
                ),
            )
        ],
        "branch",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", 64]),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors if outer else [],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return data


@pytest.mark.parametrize("outer", [True, False])
def test_nodes_in_branches_are_taken(outer: bool) -> None:
    node = helper.make_node(
        "MatMulNBits", ["x", "weights", "scales"], ["product"], domain=MICROSOFT,
        N=8, K=64, block_size=32, bits=4,
    )  # fmt: skip
    model = branch(node, {"weights": values(8, 2, 16), "scales": scales(8, 2)}, outer=outer)
    feeds = {"x": floats(3, 64), "condition": np.array(True)}
    (ours,), taken = outcome(model, feeds, plugin=True)
    (cpu,), _ = outcome(model, feeds, plugin=False)
    assert taken == 1
    np.testing.assert_allclose(ours, cpu, rtol=0, atol=1e-4 * np.abs(cpu).max())


def test_a_run_of_no_tokens_is_empty() -> None:
    (y,), _ = outcome(*matmul(x=floats(0, 64)), plugin=True)
    assert y.shape == (0, 8)
    (y,), _ = outcome(*gather(ids=np.zeros((0, 2), np.int64)), plugin=True)
    assert y.shape == (0, 2, 64)
    empty = floats(0, 3, 16)
    for operator in (RMS, SIMPLIFIED, SKIP):
        (y,), _ = outcome(*norm(operator, x=empty, skip=empty), plugin=True)
        assert y.shape == empty.shape
