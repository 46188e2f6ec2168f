"""Reports of accuracy and latency written by hand, for tests of what prints them."""

from __future__ import annotations

import math
from typing import Any

from edgetie.harness.accuracy.check import AccuracyReport
from edgetie.harness.accuracy.metrics import Interval
from edgetie.harness.accuracy.thresholds import Thresholds
from edgetie.harness.latency.bench import LatencyReport
from edgetie.harness.latency.worker import Run
from edgetie.harness.ties.inspect import TieStatus

ENVIRONMENT = {
    "processor": "Test Processor 9000",
    "system": "Linux x86_64",
    "edgetie": "0.1.0",
    "onnxruntime": "1.24.1",
    "date": "2026-01-31",
}


def latency_run(**values: Any) -> Run:
    defaults: dict[str, Any] = {
        "prompt_tokens": 8, "threads": 2, "load_seconds": 0.5, "first_run_ms": 12.0,
        "encode_ms": None, "provider": "cpu", "prefill_ms": 10.0, "baseline_rss_bytes": 50_000_000,
        "rss_bytes": 30_000_000, "anonymous_bytes": 20_000_000, "file_mapped_bytes": 10_000_000,
        "peak_rss_bytes": 40_000_000, "nodes_per_provider": {"CPUExecutionProvider": 9},
        "fallback_nodes": {}, "latency_problem": None, "step_ms": [4.0, 5.0, 6.0],
        "onnxruntime_version": "1.24.1", "speculative_ms": None, "accepted_share": None,
    }  # fmt: skip
    return Run(**defaults | values)


def latency_report(**values: Any) -> LatencyReport:
    run = latency_run()
    shared = {
        name: value
        for name, value in vars(run).items()
        if name not in ("step_ms", "speculative_ms", "onnxruntime_version", "timeline")
    }
    defaults: dict[str, Any] = {
        "model": "models/int8", "precision": "int8", "parameters": 134_500_000,
        "new_tokens": 4, "batch": 1, "repeat": 1, "prefill_tokens_per_second": 800.0,
        "decode_tokens_per_second": 200.0, "speculative_tokens_per_second": None,
        "latency_ms": {"p50": 5.0, "p90": 5.8, "p99": 6.0},
        "file_bytes": 147_000_000, "latency_valid": True,
        "ties": TieStatus(1, True, "table: 2 uses"), "copies_in_memory": 1,
        "confidence": {"decode_tokens_per_second": Interval(190.0, 210.0, 0.75)}, "spread": {},
        "deviation": {"prefill_tokens_per_second": 3.0, "decode_tokens_per_second": 1.5},
        "environment": ENVIRONMENT, "runs": [run],
    }  # fmt: skip
    return LatencyReport(**shared | defaults | values)


def accuracy_report(**values: Any) -> AccuracyReport:
    defaults: dict[str, Any] = {
        "predictions": 100, "tokens": 90, "mean_kl_divergence": 0.001, "top1_agreement": 0.97,
        "top1_agreement_error": 0.01, "perplexity": 20.1, "reference_perplexity": 20.0,
        "perplexity_increase": 0.005, "perplexity_increase_error": 0.002, "bundle": "int8",
        "reference": "fp32", "provider": "cpu", "precision": "int8", "data": "90 tokens",
        "positions": 100, "max_abs_error": 0.5, "mean_abs_error": 0.1, "relative_error": 0.02,
        "greedy_agreement": 0.8, "encoder_similarity": math.nan, "encoder_error": math.nan,
        "nodes_per_provider": {"CPUExecutionProvider": 9},
        "fallback_nodes": {}, "environment": ENVIRONMENT,
        "thresholds": Thresholds(max_kl=0.02, min_top1=0.98),
        "failures": {"top1_agreement": "top-1 agreement 0.97 ± 0.01 is below 0.98"},
    }  # fmt: skip
    return AccuracyReport(**defaults | values)
