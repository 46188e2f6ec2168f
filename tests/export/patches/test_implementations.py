"""Implementations that are set while a model is traced, and restored."""

from __future__ import annotations

from typing import Any

import models
import pytest
import transformers
from models import source_of

from edgetie.errors import UnfusableError
from edgetie.export.attention import transformers_attention
from edgetie.export.patches.implementations import (
    announced_export,
    attention_implementation,
    experts_implementation,
)


def mixtral() -> Any:
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, num_local_experts=2,
        )
    )  # fmt: skip


def test_attention_is_set_and_restored() -> None:
    model = models.transformers_model("Llama")
    before = model.config._attn_implementation
    with attention_implementation(source_of(model), transformers_attention.register()):
        assert model.config._attn_implementation == "edgetie"
    assert model.config._attn_implementation == before
    with attention_implementation(source_of(model), None):
        assert model.config._attn_implementation == before


def test_attention_that_cannot_be_replaced() -> None:
    source = source_of(models.transformers_model("Bloom"))
    with (
        pytest.raises(UnfusableError, match="cannot be replaced"),
        attention_implementation(source, transformers_attention.register()),
    ):
        pytest.fail("Bloom computes attention itself")


def test_experts_are_set_and_restored() -> None:
    model = mixtral()
    before = model.get_experts_implementation()
    with experts_implementation(source_of(model)) as has_experts:
        assert has_experts
        assert "batched_mm" in str(model.get_experts_implementation())
    assert model.get_experts_implementation() == before
    with experts_implementation(source_of(models.hand_written())) as has_experts:
        assert not has_experts


def test_export_is_announced_in_every_configuration() -> None:
    model = models.transformers_model("Llama")
    with announced_export(source_of(model)):
        assert model.config.onnx_export
    assert not hasattr(model.config, "onnx_export")
    model.config.onnx_export = False
    with announced_export(source_of(model)):
        assert model.config.onnx_export
    assert model.config.onnx_export is False
