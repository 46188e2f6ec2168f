"""Keep a model's accuracy in a pytest: ``pytest accuracy_test.py``.

FP32 and INT8 are environment variables with the paths of two bundles.
"""

from __future__ import annotations

import os

import edgetie


def test_int8_is_accurate() -> None:
    report = edgetie.check_model(os.environ["INT8"], os.environ["FP32"], max_kl=0.05, min_top1=0.9)
    assert report.passed, report.failures


def test_the_embedding_is_stored_once() -> None:
    for tie in edgetie.inspect_model(os.environ["INT8"]).ties:
        assert tie.file == 1
