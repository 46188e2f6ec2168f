"""Compute the logits that an export must reproduce, of a model that depends on its inputs alone.

An exported graph keeps nothing between calls and draws no random numbers. A model that does either
could agree with its graph by chance, or because both see weights that the comparison changed.
"""

from __future__ import annotations

import random
import zlib
from itertools import chain
from typing import Any

import numpy as np
import torch

from edgetie.errors import ExportError
from edgetie.export.comparison import ReferenceRun, largest_error, largest_logit
from edgetie.export.tasks.base import Task
from edgetie.export.tasks.trial_run import trial_run
from edgetie.sources.source import Source

_Checksums = dict[str, tuple[Any, ...]]

_REPETITIONS = 8  # of a model that draws random numbers: a layer may be left out in few runs
_TOLERANCE = 1e-5  # of the largest logit: more than sums in another order differ by


def run_reference(source: Source) -> tuple[Task, ReferenceRun]:
    """Find out how the model is exported, and run it in evaluation mode.

    Raises:
        ExportError: if it is not a model for its task, its logits are not finite, or they depend
            on more than its inputs: on earlier calls, on random numbers or on weights and settings
            that it changes.
    """
    module = source.module.eval()
    settings, weights, states = _text_settings(module), _checksums(module), _random_states()
    task = trial_run(source)
    try:
        reference = _run_repeatedly(task, module, weights, states)
        _require_same_settings(module, settings)
    except ExportError as error:
        raise ExportError(f"{source.name}: {error}") from error
    if not np.isfinite(reference.logits).all():
        raise ExportError(
            f"{source.name}: its logits in torch are NaN or infinite, so it cannot be verified; "
            "look for NaN in its weights"
        )
    return task, reference


def _run_repeatedly(
    task: Task, module: torch.nn.Module, weights: _Checksums, states: tuple[Any, ...]
) -> ReferenceRun:
    """Run the reference, and again to see whether anything but the inputs changes the logits."""
    try:
        reference = task.run_reference(module)
        _require_same_weights(module, weights)
        for _ in range(_REPETITIONS if _random_states() != states else 1):
            _require_same_logits(reference, task.run_reference(module))
    except ExportError as error:
        _require_same_weights(module, weights)  # if they changed, that explains any error
        if _random_states() != states:
            raise ExportError(
                "its logits depend on random numbers even in evaluation mode; apply dropout and "
                "noise only if the module's attribute training is true"
            ) from error
        raise
    return reference


def _checksums(module: torch.nn.Module) -> _Checksums:
    """Collect shape, dtype and checksum of every parameter and buffer on the CPU, by name."""
    return {
        name: (tensor.shape, tensor.dtype, _checksum(tensor))
        for name, tensor in chain(module.named_parameters(), module.named_buffers())
        if tensor.device.type == "cpu" and tensor.layout is torch.strided
    }


def _checksum(tensor: torch.Tensor) -> int:
    data = tensor.detach().resolve_conj().resolve_neg().reshape(-1).view(torch.uint8)
    return zlib.crc32(data.numpy().data)


def _random_states() -> tuple[Any, ...]:
    """Return the states of all generators of random numbers that a module may use."""
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


def _require_same_weights(module: torch.nn.Module, before: _Checksums) -> None:
    after = _checksums(module)
    changed = [name for name in before if after.get(name) != before[name]]
    if changed:
        tensors = "a parameter" if changed[0] in dict(module.named_parameters()) else "a buffer"
        raise ExportError(
            f"it changes {changed[0]}, {tensors} of its own, while it runs in evaluation mode "
            f"({len(changed)} in all), so its logits may depend on earlier calls; change it before "
            "the export and switch that off, such as max_norm of an nn.Embedding"
        )


def _require_same_logits(first: ReferenceRun, second: ReferenceRun) -> None:
    same = first.logits.shape == second.logits.shape
    change = largest_error(second.logits, first.logits) if same else float("inf")
    if change > _TOLERANCE * largest_logit(first.logits):
        raise ExportError(
            "its logits of the same tokens change from call to call, so it keeps a state outside "
            "its inputs; reset that at the start of forward"
        )


def _text_settings(module: torch.nn.Module) -> dict[str, str]:
    """Collect the settings of a model's configuration and parts that are strings, by name."""
    parts = (getattr(module, "config", None), *module.modules())
    return {
        name: value
        for part in parts
        for name, value in getattr(part, "__dict__", {}).items()
        if isinstance(value, str) and not name.startswith("_")
    }


def _require_same_settings(module: torch.nn.Module, before: dict[str, str]) -> None:
    for setting, value in _text_settings(module).items():
        if before.get(setting, value) != value:
            raise ExportError(
                f"a few tokens turned {setting} from {before[setting]} to "
                f"{value}, so longer texts would be computed in another way; set {setting} to "
                f"{value} in its configuration to export that"
            )
