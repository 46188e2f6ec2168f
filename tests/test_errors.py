"""Errors: their one line, their spelling, and how they cross processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetie.errors import (
    BundleError,
    EdgetieError,
    ProviderError,
    TieError,
    error_from_dict,
    summarize,
)


def test_message_alone() -> None:
    assert str(EdgetieError("no model; name one")) == "no model; name one"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (EdgetieError("unknown", parameter="task", value="x"), "task='x': unknown"),
        (EdgetieError("needs a path", parameter="strict"), "strict: needs a path"),
        (EdgetieError("exists", advice={"force": True}), "exists; pass force=True"),
        (
            EdgetieError("exists; name another", advice={"force": True}),
            "exists; name another or pass force=True",
        ),
        (EdgetieError("no", advice={"a": 1, "b": "c"}), "no; pass a=1 or b='c'"),
    ],
)
def test_parameters_are_spelled_as_in_python(error: EdgetieError, line: str) -> None:
    assert str(error) == line


def test_another_spelling() -> None:
    error = EdgetieError("not 8", parameter="cache_bits", value=4)
    assert error.describe(lambda name, value: f"<{name} {value}>") == "<cache_bits 4>: not 8"


@pytest.mark.parametrize(
    "error",
    [
        BundleError("missing; export it again"),
        ProviderError("absent", parameter="provider", value="cuda", advice={"provider": "cpu"}),
        TieError("parted", parameter="source", value=Path("x")),
    ],
)
def test_errors_cross_processes(error: EdgetieError) -> None:
    copy = error_from_dict(json.loads(json.dumps(error.to_dict())))
    assert type(copy) is type(error)
    assert copy.exit_code == error.exit_code
    spell = "{} {}".format
    assert copy.describe(spell) == error.describe(spell)


def test_unknown_type_is_a_bundle_error() -> None:
    assert type(error_from_dict({"type": "Surprise", "message": "x"})) is BundleError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond"), "first"),
        (ValueError(), "ValueError"),
        (RuntimeError("[ONNXRuntimeError] : 1 : FAIL : a.cc:1 what failed"), "a.cc:1 what failed"),
        (
            RuntimeError("std::bad_alloc"),
            "not enough memory; take a smaller batch, a shorter prompt",
        ),
    ],
)
def test_errors_of_libraries_are_one_line(error: Exception, line: str) -> None:
    assert summarize(error).startswith(line)
