"""Limits: their ranges, their defaults, and what breaks them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edgetie.bundle.bundle import open_bundle
from edgetie.errors import EdgetieError
from edgetie.harness.accuracy.metrics import PredictionMetrics
from edgetie.harness.accuracy.thresholds import Thresholds, default_thresholds, precision_of

GOOD = PredictionMetrics(
    predictions=100,
    tokens=100,
    mean_kl_divergence=0.1,
    top1_agreement=0.99,
    top1_agreement_error=0.003,
    perplexity=20.24,
    reference_perplexity=20.0,
    perplexity_increase=0.012,  # within two standard errors of 0.003
    perplexity_increase_error=0.005,
)


def test_failures_name_what_broke_its_limit() -> None:
    limits = default_thresholds("int8").override(Thresholds(max_kl=0.5))
    assert limits.max_kl == 0.5
    assert limits.min_top1 == default_thresholds("int8").min_top1
    assert limits.failures(GOOD, relative_error=9.0) == {}
    bad = replace(GOOD, mean_kl_divergence=math.nan, top1_agreement=0.5, perplexity_increase=0.02)
    assert limits.failures(bad) == {
        "mean_kl_divergence": "KL divergence unknown is above 0.5",
        "perplexity_increase": "perplexity increase 0.02 ± 0.005 is above 0.003",
        "top1_agreement": "top-1 agreement 0.5 ± 0.003 is below 0.98",
    }
    assert Thresholds().failures(bad) == {}


def test_two_standard_errors_of_a_short_text_are_granted() -> None:
    limits = Thresholds(min_top1=0.99)
    assert limits.failures(replace(GOOD, top1_agreement=0.985)) == {}
    assert "top1_agreement" in limits.failures(replace(GOOD, top1_agreement=0.983))
    assert "top1_agreement" in limits.failures(replace(GOOD, top1_agreement=math.nan))


def test_logit_errors_have_a_limit_of_their_own() -> None:
    limits = Thresholds(max_relative_error=1e-4)
    assert limits.failures(GOOD, relative_error=2e-4) == {
        "relative_error": "relative error 0.0002 is above 0.0001"
    }
    assert "unknown" in limits.failures(GOOD)["relative_error"]


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        ("min_top1", 98),
        ("min_top1", -0.1),
        ("max_kl", -1),
        ("max_kl", math.nan),
        ("max_relative_error", -1e-9),
        ("max_perplexity_increase", -1.5),
    ],
)
def test_limits_out_of_range_are_refused(limit: str, value: float) -> None:
    with pytest.raises(EdgetieError, match="must be") as caught:
        Thresholds(**{limit: value})
    assert (caught.value.parameter, str(caught.value.value)) == (limit, str(value))


def test_defaults_follow_the_precision() -> None:
    assert default_thresholds("int8-static16").min_top1 == 0.93
    assert default_thresholds("int8-of-another-kind") == default_thresholds("int8")
    assert default_thresholds("unheard of") == default_thresholds("int8")
    assert default_thresholds("fp32").max_relative_error == 1e-4
    random = default_thresholds("fp32", on_text=False)
    assert (random.min_top1, random.max_perplexity_increase) == (None, None)
    assert random.max_kl == default_thresholds("fp32").max_kl


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
    assert precision_of(open_bundle(tmp_path)) == precision
