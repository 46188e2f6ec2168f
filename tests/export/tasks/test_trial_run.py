"""One trial run for each task."""

from __future__ import annotations

from dataclasses import replace

import models
import pytest
import torch
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
