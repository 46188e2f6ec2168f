"""Plans: the ways in which a model can be traced, in the order in which they are tried."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from edgetie.errors import ExportError, UnfusableError
from edgetie.export.attention import transformers_attention
from edgetie.export.tasks.base import Task

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_EAGER = "eager"  # transformers' name for attention in elementary operators
_STANDARD = "cannot be exported in standard operators with a cache: "


class DisagreementError(ExportError):
    """A written model does not run, or does not compute what torch does."""


@dataclass(frozen=True)
class TracePlan:
    """One way to trace a model.

    Attributes:
        task: its graphs, with a cache or without.
        fused: whether attention becomes one operator, as :meth:`Task.graphs` takes it.
        attention: transformers' attention implementation; ``None`` leaves the model's own.
        loses: what is not fused if the plan fails.
        notes: what is not fused if it succeeds, for the report.
        error: beginning of the error message if the plan does not suit the model.
    """

    task: Task
    fused: bool
    attention: str | None = None
    loses: str = "KV cache"
    notes: tuple[str, ...] = ()
    error: str = ""


def list_plans(name: str, task: Task, *, fused: bool) -> list[TracePlan]:
    """List the plans for a model: fused attention, the model's own attention, no cache.

    Without fused operators the only plan is attention in elementary operators, with a cache.

    Raises:
        ExportError: if a target of standard operators only does not support the task.
    """
    if not fused:
        reason = None
        if not task.cache:
            reason = "standard operators alone are for decoders with a cache"
        elif not task.replaces_attention:
            reason = f"{_STANDARD}its attention implementation cannot be set"
        if reason:
            raise ExportError(f"{name}: {reason}", advice={"target": "cpu"})
        written_out = ("attention: written out",)
        return [TracePlan(task, False, _EAGER, notes=written_out, error=_STANDARD)]
    notes = (f"KV cache: {task.no_cache_reason}",) if task.no_cache_reason else ()
    plans = [TracePlan(task, not task.replaces_attention, notes=notes)]
    if task.replaces_attention:
        attention = transformers_attention.register()
        plans.insert(0, TracePlan(task, True, attention, loses="attention", notes=notes))
    if (without_cache := task.without_cache()) is not None:
        plans.append(TracePlan(without_cache, True))
    return plans


def try_plans(
    name: str, plans: Sequence[TracePlan], attempt: Callable[[TracePlan, list[str]], Result]
) -> Result:
    """Try plans in order until one succeeds.

    After wrong logits, other plans for the same task are skipped: their cache is the same.
    ``attempt`` is called with a plan and the reasons why earlier plans failed, for the report.

    Raises:
        ExportError: if every plan fails; with the last reason, and every disagreement.
    """
    reasons: list[str] = []
    disagreements: list[str] = []
    while True:
        plan, *plans = plans
        try:
            return attempt(plan, reasons)
        except (UnfusableError, ExportError) as error:
            if isinstance(error, DisagreementError):
                plans = [other for other in plans if other.task is not plan.task]
                disagreements.append(str(error))
                reasons.append(f"KV cache: with one, {error}")
                failures = disagreements
            else:
                reasons.append(f"{plan.loses}: {error}")
                prefix = plan.error if isinstance(error, UnfusableError) else ""
                failures = [*disagreements, f"{prefix}{error}"]
            logger.info("%s is not fused: %s", name, reasons[-1])
            if not plans:
                message = "; without a KV cache, ".join(failures)
                end = "; nothing was written" if disagreements else ""
                raise ExportError(f"{name}: {message}{end}") from error
