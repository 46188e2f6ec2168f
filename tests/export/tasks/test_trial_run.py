"""One trial run for each task."""

from __future__ import annotations

from dataclasses import replace

import models
import pytest
import torch
import transformers
from models import source_of

from edgetie.errors import ExportError
from edgetie.export.tasks.causal import CausalTask
from edgetie.export.tasks.trial_run import trial_run


def test_the_task_decides() -> None:
    assert isinstance(trial_run(source_of(models.hand_written())), CausalTask)


def test_tasks_without_an_export_are_refused() -> None:
    source = replace(source_of(models.hand_written()), task="tagging")
    with pytest.raises(ExportError, match="model: tagging models cannot be exported yet"):
        trial_run(source)


def test_errors_of_the_model_are_in_the_message() -> None:
    with pytest.raises(ExportError, match=r"calling it with a few tokens failed \(\w+: .+\)"):
        trial_run(source_of(torch.nn.Conv2d(3, 3, 3)))


def test_images_are_not_left_out_silently() -> None:
    """The images of GIT come before its text, without a token for them."""
    config = transformers.GitConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32,
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "intermediate_size": 16, "image_size": 16, "patch_size": 8},
    )  # fmt: skip
    source = source_of(transformers.GitForCausalLM(config).eval())
    with pytest.raises(ExportError, match="no decoder that attends") as refused:
        trial_run(source)
    assert refused.value.advice == {"task": "causal-lm"}
    assert isinstance(trial_run(replace(source, task="causal-lm")), CausalTask)
