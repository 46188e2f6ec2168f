"""Sessions on edgetie's provider with several threads, beside each other, and one after another."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from kernel_models import MICROSOFT, build_model, nodes_taken, open_session
from onnx import helper

from edgetie.runtime.memory import read_memory

WIDTH, ROWS, BLOCK = 192, 300, 32
BLOCKS = WIDTH // BLOCK
TOKENS = (1, 2, 5, 9, 40)


def quantized(rng: np.random.Generator, name: str, rows: int, bits: int) -> dict[str, np.ndarray]:
    return {
        name: rng.integers(0, 256, (rows, BLOCKS, BLOCK * bits // 8), np.uint8),
        f"{name}_scales": rng.uniform(0.001, 0.01, (rows, BLOCKS)).astype(np.float32),
    }


def linear(source: str, weights: str, target: str, rows: int, bits: int) -> Any:
    return helper.make_node(
        "MatMulNBits", [source, weights, f"{weights}_scales"], [target], domain=MICROSOFT,
        N=rows, K=WIDTH, block_size=BLOCK, bits=bits,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model() -> bytes:
    """Lookup, norm, 4 bits, skip, norm, 8 bits."""
    rng = np.random.default_rng(0)
    table = {
        "table": rng.integers(0, 256, (50, WIDTH), np.uint8),
        "table_scales": rng.uniform(0.001, 0.01, (50, BLOCKS)).astype(np.float32),
    }
    nodes = [
        helper.make_node(
            "GatherBlockQuantized", ["table", "ids", "table_scales"], ["x"], domain=MICROSOFT,
            bits=8, block_size=BLOCK, quantize_axis=1,
        ),
        helper.make_node("RMSNormalization", ["x", "gain"], ["normal"]),
        linear("normal", "inner", "product", WIDTH, 4),
        helper.make_node(
            "SkipSimplifiedLayerNormalization", ["x", "product", "gain"], ["z"], domain=MICROSOFT
        ),
        linear("z", "outer", "y", ROWS, 8),
    ]  # fmt: skip
    constants = (
        table
        | quantized(rng, "inner", WIDTH, 4)
        | quantized(rng, "outer", ROWS, 8)
        | {"gain": rng.standard_normal(WIDTH).astype(np.float32)}
    )
    return build_model(nodes, constants, {"ids": (np.int64, ["batch", "sequence"])})


@pytest.fixture(scope="module")
def expected(model: bytes) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids, and what one session with one thread computes from them, one after the other."""
    session = open_session(model)
    assert nodes_taken(session) == 5
    rng = np.random.default_rng(1)
    batches = [rng.integers(0, 50, (1, tokens)) for tokens in TOKENS * 4]
    return [(ids, session.run(None, {"ids": ids})[0]) for ids in batches]


Expected = list[tuple[np.ndarray, np.ndarray]]


def require_equal(session: Any, expected: Expected) -> None:
    for ids, y in expected:
        np.testing.assert_array_equal(session.run(None, {"ids": ids})[0], y)


@pytest.mark.parametrize("threads", [2, 7])
def test_results_do_not_depend_on_the_threads(
    model: bytes, expected: Expected, threads: int
) -> None:
    require_equal(open_session(model, threads), expected)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_one_session_serves_several_callers_at_once(
    model: bytes, expected: Expected, threads: int
) -> None:
    session = open_session(model, threads)
    with ThreadPoolExecutor(6) as callers:
        for done in [callers.submit(require_equal, session, expected) for _ in range(12)]:
            done.result()


def test_sessions_are_opened_and_run_beside_each_other(model: bytes, expected: Expected) -> None:
    with ThreadPoolExecutor(6) as callers:
        for done in [
            callers.submit(lambda: require_equal(open_session(model, 2), expected))
            for _ in range(12)
        ]:
            done.result()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sessions_opened_and_closed_a_thousand_times_leave_nothing(model: bytes) -> None:
    anonymous = []
    for number in range(1000):
        session = open_session(model)
        session.run(None, {"ids": np.array([[1, 2]])})
        del session
        if number in (199, 999):
            anonymous.append(read_memory().anonymous)
    assert anonymous[1] - anonymous[0] < 2**20  # 1.3 KB a session
