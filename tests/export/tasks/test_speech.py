"""Models from audio to text: the shapes of their features."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from edgetie.export.tasks.speech import (
    SpeechTask,
    candidate_shapes,
    changes_with_length,
    find_input_shape,
    lengthened,
    trial_run,
)


def small_whisper() -> Any:
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=64, d_model=16, num_mel_bins=8, max_source_positions=10,
        max_target_positions=12, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
        pad_token_id=1, bos_token_id=1, eos_token_id=1, decoder_start_token_id=2,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config).eval()


def test_a_spectrogram_of_fixed_length() -> None:
    model = small_whisper()
    task = trial_run(model, model.config)
    assert isinstance(task, SpeechTask)
    assert (task.input_name, task.shape, task.time_axis) == ("input_features", (8, 20), None)
    assert (task.encoded_length, task.hidden_size, task.max_positions) == (10, 16, 12)
    encoder, decoder = task.graphs(model, fused=True, last_only=True)
    assert encoder.inputs == ["input_features"]
    assert "encoder_attention_mask" not in decoder.inputs
    reference = task.run_reference(model)
    assert reference.logits.shape == (2 * 8, 64)
    single, pair = task.encoder_feeds(reference, np.float16)
    assert (single["input_features"].shape, pair["input_features"].shape) == (
        (1, 8, 20),
        (2, 8, 20),
    )
    assert pair["input_features"].dtype == np.float16


@pytest.mark.parametrize(
    ("name", "config", "first"),
    [
        ("input_values", {}, ((8000,), 0)),
        ("input_features", {"num_mel_bins": 80, "max_source_positions": 50}, ((80, 100), 1)),
        ("input_features", {"input_feat_per_channel": 40, "input_channels": 2}, ((96, 80), 0)),
        ("input_features", {"num_mel_bins": 80}, ((96, 80), 0)),
    ],
)
def test_candidates(name: str, config: dict[str, int], first: tuple[tuple[int, ...], int]) -> None:
    configs = (SimpleNamespace(num_mel_bins=None), SimpleNamespace(**config))
    assert next(candidate_shapes(name, *configs)) == first


def test_the_first_shape_that_can_be_encoded() -> None:
    def encode(shape: tuple[int, ...], time_axis: int) -> int:
        if shape != (2, 3):
            raise ValueError(shape)
        return time_axis

    def shapes() -> Iterator[tuple[tuple[int, ...], int]]:
        yield (1,), 0
        yield (2, 3), 1
        raise AssertionError("no more are needed")

    assert find_input_shape(shapes(), encode, "input_features") == ((2, 3), 1, 1)
    with pytest.raises(TypeError, match="no shape of input_features is known that it accepts"):
        find_input_shape(iter([((1,), 0)]), encode, "input_features")


def test_length() -> None:
    assert lengthened((3, 5), 1, 1.5) == (3, 7)
    assert changes_with_length(lambda: 7, 5)
    assert not changes_with_length(lambda: 5, 5)
    assert not changes_with_length(lambda: 1 // 0, 5)
