"""GroupQueryAttention computes what ONNX Runtime's own kernel computes, or is left to it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attention_cases import Case, compare, open_case, run
from instruction_sets import SETS, select_set
from kernel_models import nodes_taken

SCRIPT = Path(__file__).parents[1] / "support" / "attention_cases.py"


def decode(**attributes: Any) -> Case:
    """One token after 5 others, in a cache of 8."""
    rng = np.random.default_rng(1)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    inputs = {
        "query": draw(1, 1, 64), "key": draw(1, 1, 32), "value": draw(1, 1, 32),
        "past_key": draw(1, 2, 8, 16), "past_value": draw(1, 2, 8, 16),
        "seqlens_k": np.array([5], np.int32), "total_sequence_length": np.array(6, np.int32),
    }  # fmt: skip
    return Case({"num_heads": 4, "kv_num_heads": 2, **attributes}, inputs)


@pytest.mark.parametrize("name", SETS)
def test_random_nodes_equal_onnx_runtimes(name: str) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "0", "150"],
        env=select_set(name),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_nan_stays_where_it_was() -> None:
    case = decode()
    case.inputs["query"][0, 0, 3] = np.nan  # of the first head
    output = run(case, plugin=True)[0].reshape(4, 16)
    assert np.isnan(output).all(axis=1).tolist() == [True, False, False, False]


@pytest.mark.parametrize("name", ["key", "value", "past_key", "past_value"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_act_as_in_onnx_runtime(name: str, number: float) -> None:
    case = decode()
    case.inputs[name][..., 3] = number
    with np.errstate(invalid="ignore"):
        expected, actual = run(case, plugin=False), run(case, plugin=True)
    for a, b in zip(expected, actual, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_stale_rows_of_the_cache_are_never_read() -> None:
    case = decode()
    case.in_place = True
    for name in ("past_key", "past_value"):
        case.inputs[name][:, :, 6:] = np.nan
    output, key, _ = run(case, plugin=True)
    assert np.isfinite(output).all()
    assert np.isnan(key[:, :, 6:]).all()
    assert not compare(case)


@pytest.mark.parametrize("tokens", [1, 3, 6])
def test_queries_alone_see_a_cache_that_others_filled(tokens: int) -> None:
    case = decode()
    case.inputs["query"] = np.ones((1, tokens, 64), np.float32)
    for name in ("key", "value"):
        case.inputs[name] = np.zeros((1, 0, 32), np.float32)
    assert not compare(case)


def test_a_batch_of_no_items_has_no_results() -> None:
    case = decode()
    for name in ("query", "key", "value", "past_key", "past_value", "seqlens_k"):
        case.inputs[name] = case.inputs[name][:0]
    assert [each.shape for each in run(case, plugin=True)] == [(0, 1, 64), *2 * [(0, 2, 8, 16)]]


def change(name: str, index: object, value: object) -> Callable[[Case], None]:
    def apply(case: Case) -> None:
        case.inputs[name][index] = value  # type: ignore[call-overload]

    return apply


def reshape(name: str, *shape: int) -> Callable[[Case], None]:
    def apply(case: Case) -> None:
        case.inputs[name] = np.zeros(shape, case.inputs[name].dtype)

    return apply


def rotate(rows: int, columns: int, position: int | None = None) -> Callable[[Case], None]:
    def apply(case: Case) -> None:
        case.attributes["do_rotary"] = 1
        for name in ("cos_cache", "sin_cache"):
            case.inputs[name] = np.ones((rows, columns), np.float32)
        if position is not None:
            case.inputs["position_ids"] = np.array([[position]], np.int64)

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change("seqlens_k", 0, 8), "seqlens_k"),
        (change("seqlens_k", 0, -1), "seqlens_k"),
        (change("seqlens_k", 0, np.iinfo(np.int32).max), "seqlens_k"),
        (reshape("seqlens_k", 2), "seqlens_k"),
        (change("total_sequence_length", (), 0), "total_sequence_length"),
        (reshape("total_sequence_length", 2), "total_sequence_length"),
        (reshape("key", 1, 2, 32), "key and value"),
        (reshape("value", 1, 1, 16), "key and value"),
        (reshape("past_key", 1, 2, 7, 16), "past_key"),
        (reshape("past_value", 1, 2, 8, 8), "past_key"),
        (reshape("past_key", 2, 2, 8, 16), "past_key"),
        (rotate(5, 8), "cos_cache"),
        (rotate(9, 16), "cos_cache"),
        (rotate(9, 8, position=9), "position"),
        (rotate(9, 8, position=-1), "position"),
    ],
)
def test_wrong_inputs_are_errors_of_both(spoil: Callable[[Case], None], message: str) -> None:
    case = decode()
    spoil(case)
    with pytest.raises(Exception, match="GroupQueryAttention"):
        run(case, plugin=False)
    with pytest.raises(Exception, match=message):
        run(case, plugin=True)


def add_bias(case: Case) -> None:
    case.inputs["attention_bias"] = np.zeros((1, 1, 1, 6), np.float32)


def widen_heads(case: Case) -> None:
    for name in ("query", "key", "value", "past_key", "past_value"):
        shape = case.inputs[name].shape
        case.inputs[name] = np.zeros((*shape[:-1], shape[-1] // 16 * 520), np.float32)


def use_int4(case: Case) -> None:
    case.attributes.update(
        k_quant_type="PER_TENSOR", v_quant_type="PER_TENSOR", kv_cache_bit_width=4
    )
    for name in ("past_key", "past_value"):
        case.inputs[name] = np.zeros((1, 2, 8, 8), np.uint8)
    for name in ("k_scale", "v_scale"):
        case.inputs[name] = np.ones(1, np.float32)


@pytest.mark.parametrize("ask", [add_bias, use_int4, widen_heads])
def test_what_is_not_computed_is_left_to_onnx_runtime(ask: Callable[[Case], None]) -> None:
    case = decode()
    ask(case)
    run(case, plugin=False)
    assert nodes_taken(open_case(case, plugin=True)) == 0
