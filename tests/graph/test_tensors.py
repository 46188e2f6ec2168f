"""Descriptions of a model's inputs, outputs and cache."""

from __future__ import annotations

from dataclasses import asdict

from edgetie.graph.tensors import CacheTensor, TensorInfo


def test_keys_grow_with_the_past() -> None:
    key = CacheTensor("3.key", (2, 0, 16))
    assert (key.past, key.present) == ("past_key_values.3.key", "present.3.key")
    assert key.grows
    assert key.shape(4) == (4, 2, 0, 16)
    assert key.shape(4, past=7) == (4, 2, 7, 16)


def test_a_recurrent_state_has_one_size() -> None:
    state = CacheTensor("0.conv_state", (32, 3))
    assert not state.grows
    assert state.shape(2, past=7) == (2, 32, 3)


def test_description_survives_json() -> None:
    info = TensorInfo("logits", "float32", ("batch_size", 1, 320))
    assert TensorInfo.from_dict({**asdict(info), "shape": ["batch_size", 1, 320]}) == info


def test_data_types_have_numpys_names() -> None:
    names = ("float", "double", "float16", "int64", "float32")
    dtypes = [TensorInfo("logits", name, ()).numpy_dtype for name in names]
    assert dtypes == ["float32", "float64", "float16", "int64", "float32"]
