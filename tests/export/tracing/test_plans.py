"""Plans in order, what a failure skips, and the reasons that are reported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import models
import pytest

from edgetie.errors import ExportError, UnfusableError
from edgetie.export.tasks.causal import CausalTask, trial_run
from edgetie.export.tasks.causal_model import CausalCall
from edgetie.export.tracing.plans import DisagreementError, TracePlan, list_plans, try_plans


@pytest.fixture(scope="module")
def llama() -> CausalTask:
    model = models.transformers_model("Llama")
    return trial_run(model, model.config)


def test_fused_plans_end_without_a_cache(llama: CausalTask) -> None:
    plans = list_plans("llama", llama, fused=True)
    assert [(plan.fused, plan.attention) for plan in plans] == [
        (True, "edgetie"), (False, None), (True, None),
    ]  # fmt: skip
    assert [bool(plan.task.cache) for plan in plans] == [True, True, False]
    assert plans[0].loses == "attention"


def test_a_hand_written_module_computes_its_own_attention() -> None:
    plans = list_plans("hand", trial_run(models.hand_written(), None), fused=True)
    assert [(plan.fused, bool(plan.task.cache)) for plan in plans] == [(True, True), (True, False)]


def test_a_model_without_a_cache_has_one_plan_that_says_why() -> None:
    (plan,) = list_plans("plain", trial_run(models.cacheless(), None), fused=True)
    assert plan.notes == ("KV cache: forward takes neither a cache nor position_ids",)


def test_standard_operators_have_one_plan_or_none(llama: CausalTask) -> None:
    (plan,) = list_plans("llama", llama, fused=False)
    assert (plan.fused, plan.attention, plan.notes) == (
        False, "eager", ("attention: written out",),
    )  # fmt: skip
    with pytest.raises(ExportError, match=r"for decoders with a cache.*target='cpu'"):
        list_plans("plain", replace(llama, cache=()), fused=False)
    with pytest.raises(ExportError, match="its attention implementation cannot be set"):
        list_plans("hand", replace(llama, call=CausalCall("positions")), fused=False)


class Attempts:
    """Raises one error after another, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.plans: list[TracePlan] = []

    def __call__(self, plan: TracePlan, reasons: list[str]) -> list[str]:
        self.plans.append(plan)
        if self.errors:
            raise self.errors.pop(0)
        return list(reasons)


def test_every_plan_is_tried_and_reasons_are_collected(llama: CausalTask, caplog: Any) -> None:
    plans = list_plans("llama", llama, fused=True)
    attempts = Attempts(UnfusableError("odd heads"), ExportError("cannot trace"))
    with caplog.at_level("INFO", logger="edgetie"):
        reasons = try_plans("llama", plans, attempts)
    assert reasons == ["attention: odd heads", "KV cache: cannot trace"]
    assert attempts.plans == plans
    assert "llama is not fused: attention: odd heads" in caplog.text


def test_wrong_logits_skip_plans_with_the_same_cache(llama: CausalTask) -> None:
    plans = list_plans("llama", llama, fused=True)
    attempts = Attempts(DisagreementError("they differ"))
    assert try_plans("llama", plans, attempts) == ["KV cache: with one, they differ"]
    assert attempts.plans == [plans[0], plans[2]]


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ([UnfusableError("a"), UnfusableError("b"), ExportError("c")], "llama: c"),
        ([DisagreementError("a"), DisagreementError("b")],
         "llama: a; without a KV cache, b; nothing was written"),
        ([DisagreementError("a"), ExportError("b")],
         "llama: a; without a KV cache, b; nothing was written"),
        ([UnfusableError("a"), UnfusableError("b"), DisagreementError("c")],
         "llama: c; nothing was written"),
    ],
)  # fmt: skip
def test_message_if_all_fail(llama: CausalTask, errors: list[Exception], message: str) -> None:
    with pytest.raises(ExportError) as raised:
        try_plans("llama", list_plans("llama", llama, fused=True), Attempts(*errors))
    assert str(raised.value) == message


def test_message_of_a_target_with_standard_operators(llama: CausalTask) -> None:
    plans = list_plans("llama", llama, fused=False)
    with pytest.raises(ExportError, match="in standard operators with a cache: odd heads"):
        try_plans("llama", plans, Attempts(UnfusableError("odd heads")))
    with pytest.raises(ExportError, match=r"^llama: cannot trace$"):
        try_plans("llama", plans, Attempts(ExportError("cannot trace")))
