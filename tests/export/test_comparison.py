"""Errors of logits, padded batches, and decoders run in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgetie.errors import ExportError
from edgetie.export.comparison import (
    Agreement,
    DecoderRunner,
    cpu_session,
    largest_error,
    largest_logit,
    left_pad,
)
from edgetie.graph.constants import MASKED_LOGIT
from edgetie.graph.tensors import CacheTensor


def test_agreement_is_relative_to_the_largest_logit() -> None:
    agreement = Agreement(prefill=1.0, cached=4.0, padded=2.0, largest_logit=8.0)
    assert agreement.relative == 0.5
    assert agreement.to_dict() == {
        "prefill": 1.0, "cached": 4.0, "padded": 2.0, "largest_logit": 8.0, "relative": 0.5,
    }  # fmt: skip
    assert Agreement(0.0, 0.0, 0.0, 0.0).relative == 0


def test_errors_are_infinite_if_a_logit_is_not_finite() -> None:
    expected = np.array([1.0, 2.0], np.float32)
    assert largest_error(np.array([1.5, 2.0], np.float16), expected) == 0.5
    assert largest_error(np.array([1.5, np.nan]), expected) == np.inf
    assert largest_error(np.array([1.5, np.inf]), expected) == np.inf


def test_tokens_that_both_exclude_do_not_count() -> None:
    expected = np.array([1.0, -np.inf, -2 * MASKED_LOGIT], np.float32)
    logits = np.array([1.25, -2 * MASKED_LOGIT, -3 * MASKED_LOGIT], np.float32)
    assert largest_error(logits, expected) == 0.25
    assert largest_error(np.array([1.0, 0.0, 0.0]), expected) == np.inf
    assert largest_logit(expected) == 1


def test_left_padding() -> None:
    tokens, mask = left_pad([np.array([3, 4]), np.array([5, 6, 7, 8])])
    np.testing.assert_array_equal(tokens, [[0, 0, 3, 4], [5, 6, 7, 8]])
    np.testing.assert_array_equal(mask, [[0, 0, 1, 1], [1, 1, 1, 1]])


def write_decoder(path: Path) -> None:
    """Its logits are the sums of all tokens so far, which are its cache."""
    ids = helper.make_tensor_value_info("ids", TensorProto.FLOAT, ["batch", 1, "length", 1])
    past = helper.make_tensor_value_info(
        "past_key_values.0.key", TensorProto.FLOAT, ["batch", 1, "past", 1]
    )
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in ("logits", "present.0.key")
    ]
    nodes = [
        helper.make_node("Concat", ["past_key_values.0.key", "ids"], ["present.0.key"], axis=2),
        helper.make_node("ReduceSum", ["present.0.key", "axes"], ["logits"], keepdims=0),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [2])
    graph = helper.make_graph(nodes, "decoder", [ids, past], outputs, [axes])
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)


def test_a_decoder_goes_on_with_its_cache(tmp_path: Path) -> None:
    write_decoder(tmp_path / "decoder.onnx")
    tokens = np.array([[[[1.0], [2.0]]], [[[3.0], [4.0]]]], np.float32)
    with cpu_session(tmp_path / "decoder.onnx") as session:
        run = DecoderRunner(session, (CacheTensor("0.key", (1, 0, 1)),), np.float32)
        logits, cache = run([tokens])
        np.testing.assert_array_equal(logits[:, 0, 0], [3, 7])
        logits, cache = run([tokens[:, :, :1]], cache)
    np.testing.assert_array_equal(logits[:, 0, 0], [4, 10])
    assert [tensor.shape for tensor in cache] == [(2, 1, 3, 1)]


def run_nothing(path: Path) -> None:
    with cpu_session(path) as session:
        session.run(None, {})


def test_errors_of_onnx_runtime_are_those_of_the_export(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(ExportError, match=r"model\.onnx: ONNX Runtime cannot run it"):
        run_nothing(tmp_path / "model.onnx")
    write_decoder(tmp_path / "decoder.onnx")
    with pytest.raises(ExportError, match=r"decoder\.onnx: ONNX Runtime cannot run it"):
        run_nothing(tmp_path / "decoder.onnx")
