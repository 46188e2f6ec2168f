"""Streamed metrics equal the definitions, computed at once and naively."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgetie.bundle.bundle import Bundle
from edgetie.harness.accuracy import metrics, samples
from edgetie.harness.accuracy.metrics import LogitErrors, PredictionErrors, common_prefix
from edgetie.harness.accuracy.thresholds import Thresholds, default_thresholds, precision_of
from edgetie.providers.environment import emulation, latency_problem


def log_softmax(row: np.ndarray) -> list[float]:
    total = math.log(math.fsum(math.exp(float(x)) for x in row))
    return [float(x) - total for x in row]


@pytest.mark.parametrize("chunk", [1, 100, 1 << 21])
def test_metrics_equal_their_definitions(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(metrics, "_CHUNK_ELEMENTS", chunk)
    rng = np.random.default_rng(1)
    errors, predictions = LogitErrors(), PredictionErrors()
    distances, divergences, same, nats, ref_nats, largest = [], [], [], [], [], 0.0
    for length in (7, 1, 12):
        ref = rng.normal(scale=3, size=(length, 31)).astype(np.float32)
        act = ref + rng.normal(scale=0.8, size=ref.shape).astype(np.float32)
        ids = rng.integers(0, 31, length)
        errors.add(ref, act)
        predictions.add(ref, act, samples.next_tokens(ids))
        largest = max(largest, float(np.abs(ref).max()))
        for i in range(length):
            p, q = log_softmax(ref[i]), log_softmax(act[i])
            distances += [abs(float(a) - float(b)) for a, b in zip(act[i], ref[i], strict=True)]
            divergences.append(sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
            same.append(p.index(max(p)) == q.index(max(q)))
            if i + 1 < length:
                ref_nats.append(-p[ids[i + 1]])
                nats.append(-q[ids[i + 1]])
    assert errors.positions == predictions.positions == 20
    assert predictions.tokens == 17
    assert 0 < sum(same) < 20
    assert errors.max_abs_error == pytest.approx(max(distances))
    assert errors.mean_abs_error == pytest.approx(np.mean(distances))
    assert errors.relative_error == pytest.approx(max(distances) / largest)
    assert predictions.mean_kl_divergence == pytest.approx(np.mean(divergences))
    assert predictions.top1_agreement == pytest.approx(np.mean(same))
    assert predictions.top1_agreement_error == pytest.approx(np.std(same) / np.sqrt(len(same)))
    assert predictions.perplexity == pytest.approx(math.exp(np.mean(nats)))
    assert predictions.reference_perplexity == pytest.approx(math.exp(np.mean(ref_nats)))
    increase = math.exp(np.mean(nats)) / math.exp(np.mean(ref_nats)) - 1
    assert predictions.perplexity_increase == pytest.approx(increase)
    spread = np.std(np.subtract(nats, ref_nats), ddof=1) / math.sqrt(17)
    assert predictions.perplexity_increase_error == pytest.approx((1 + increase) * spread)


def test_rows_that_are_not_finite_are_counted_and_left_out() -> None:
    ref = np.arange(12, dtype=np.float32).reshape(4, 3)
    act = ref + 1
    act[1, 2], act[2, 0] = np.nan, np.inf
    ids = np.array([0, 1, 2, 0])
    errors, predictions = LogitErrors(), PredictionErrors()
    errors.add(ref, act)
    predictions.add(ref, act, samples.next_tokens(ids))
    assert (errors.positions, errors.nonfinite) == (2, 2)
    assert errors.max_abs_error == errors.mean_abs_error == 1
    assert (predictions.positions, predictions.tokens) == (2, 1)
    assert predictions.perplexity == pytest.approx(math.exp(-log_softmax(act[0])[1]))
    act[:] = np.nan
    nothing = LogitErrors()
    nothing.add(ref, act)
    assert math.isnan(nothing.max_abs_error)
    assert math.isnan(PredictionErrors().perplexity)


def test_equal_logits_are_perfect() -> None:
    logits = np.random.default_rng(2).normal(size=(5, 9)).astype(np.float32)
    errors, predictions = LogitErrors(), PredictionErrors()
    errors.add(logits, logits)
    predictions.add(logits, logits, samples.next_tokens(np.arange(5)))
    assert errors.relative_error == 0
    assert predictions.mean_kl_divergence == predictions.perplexity_increase == 0
    assert predictions.top1_agreement == 1


def test_common_prefix_ends_at_the_first_difference() -> None:
    assert common_prefix([1, 2, 3, 4], [1, 2, 9, 4]) == 2
    assert common_prefix([1, 2], [1, 2]) == 2
    assert common_prefix([1], [2]) == 0


def test_windows_do_not_overlap_and_carry_the_prefix() -> None:
    cut = [window.tolist() for window in samples.windows(range(10, 17), 4, [1])]
    assert cut == [[1, 10, 11, 12], [1, 13, 14, 15], [1, 16]]
    assert [len(window) for window in samples.windows(range(9), 4)] == [4, 4]


def test_random_ids_are_the_same_every_time() -> None:
    ids = samples.random_ids(500, 20)
    assert (ids == samples.random_ids(500, 20)).all()
    assert set(ids.tolist()) == set(range(20))


def test_prompts_are_spread_over_the_text() -> None:
    assert samples.spread(range(10), 2, 4) == [[0, 1, 2, 3], [3, 4, 5, 6]]
    assert samples.spread(range(3), 4, 32) == [[0, 1, 2]]
    assert samples.spread(range(3), 0, 32) == []


def test_thresholds_name_what_failed() -> None:
    limits = default_thresholds("int8").override(Thresholds(max_kl=0.5))
    assert limits.max_kl == 0.5
    assert limits.min_top1 == default_thresholds("int8").min_top1
    good = {
        "relative_error": 9.0,
        "mean_kl_divergence": 0.1,
        "top1_agreement": 0.99,
        "top1_agreement_error": 0.003,
        "perplexity_increase": 0.012,  # within two standard errors of 0.003
        "perplexity_increase_error": 0.005,
    }
    assert limits.failures(**good) == {}
    changed = {"mean_kl_divergence": math.nan, "top1_agreement": 0.5, "perplexity_increase": 0.02}
    assert limits.failures(**(good | changed)) == {
        "mean_kl_divergence": "KL divergence unknown is above 0.5",
        "perplexity_increase": "perplexity increase 0.02 ± 0.005 is above 0.003",
        "top1_agreement": "top-1 agreement 0.5 ± 0.003 is below 0.98",
    }
    assert default_thresholds("fp32", on_text=False).min_top1 is None
    assert Thresholds().failures(**(good | changed)) == {}


@pytest.mark.parametrize(
    ("kinds", "precision"),
    [
        ([(TensorProto.FLOAT, 10), (TensorProto.INT8, 90)], "int8"),
        ([(TensorProto.FLOAT16, 90), (TensorProto.FLOAT, 10)], "fp16"),
        ([(TensorProto.INT64, 90), (TensorProto.FLOAT, 10)], "fp32"),
        ([], "fp32"),
    ],
)
def test_precision_of_a_bare_file_is_that_of_most_weights(
    tmp_path: Path, kinds: list[tuple[int, int]], precision: str
) -> None:
    tensors = [
        helper.make_tensor(f"t{index}", kind, [size], [1] * size)
        for index, (kind, size) in enumerate(kinds)
    ]
    out = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [out], [], tensors)
    onnx.save(helper.make_model(graph), str(tmp_path / "m.onnx"))
    assert precision_of(Bundle(tmp_path, tmp_path / "m.onnx", None)) == precision


def elf(machine: int, order: str) -> bytes:
    head = b"\x7fELF\x02" + (b"\x01" if order == "<" else b"\x02") + bytes(10)
    return head + struct.pack(f"{order}HH", 2, machine)


def test_emulation_is_told_by_the_running_program(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(elf(62, "<"))  # what runs is made for x86-64
    assert emulation(program, "aarch64") == "this aarch64 process is emulated"
    assert emulation(program, "x86_64") is None
    program.write_bytes(elf(183, "<"))
    assert emulation(program, "aarch64") is None
    assert emulation(program, "armv7l") is None  # a 64-bit core runs 32-bit programs
    program.write_bytes(elf(22, ">"))
    assert emulation(program, "x86_64") == "this x86_64 process is emulated"
    program.write_bytes(b"#!/bin/sh\n")
    assert emulation(program, "x86_64") is None
    assert emulation(tmp_path / "missing", "x86_64") is None


def test_a_simulated_accelerator_is_no_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert latency_problem("qnn") == "qnn on x86_64 is a simulator"


def test_tokens_that_both_leave_out_do_not_hide_an_error() -> None:
    rng = np.random.default_rng(2)
    ref = rng.normal(scale=3, size=(5, 40)).astype(np.float32)
    act = ref + np.float32(0.5)
    largest = float(np.abs(ref[:, :30]).max())
    ref[:, 30:], act[:, 30:] = -1e9, np.finfo(np.float32).min
    errors = LogitErrors()
    errors.add(ref, act)
    assert errors.max_abs_error == pytest.approx(0.5, rel=1e-5)
    assert errors.relative_error == pytest.approx(0.5 / largest, rel=1e-5)
    act[0, 30] = 0.0  # which the other never says
    errors.add(ref, act)
    assert errors.relative_error > 1
