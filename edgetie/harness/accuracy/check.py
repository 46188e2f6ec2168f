"""Accuracy of a bundle against a reference: logits, KL divergence, perplexity, greedy tokens.

Both models read the same token windows, one window at a time. Windows do not overlap, each starts
without context, and the first token of each is not scored, so a perplexity here is a little above
one that slides its window; both models pay the same.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.errors import BundleError, SourceError
from edgetie.harness.accuracy import samples
from edgetie.harness.accuracy.metrics import LogitErrors, PredictionErrors, common_prefix
from edgetie.harness.accuracy.references import BundleReference, Reference, resolve_reference
from edgetie.harness.accuracy.remote_reference import RemoteReference, open_reference
from edgetie.harness.accuracy.thresholds import Thresholds, default_thresholds, precision_of
from edgetie.progress import Progress, Stages
from edgetie.providers.registry import find
from edgetie.runtime.text.tokenizer import TOKENIZER, Tokenizer

Ids = npt.NDArray[np.int64]
_Model = BundleReference | RemoteReference

_PROMPT_TOKENS = 32
_SMALLEST_WINDOW = 16


@dataclass
class AccuracyReport:
    """What :func:`check_model` measured; a value without tokens to measure it on is NaN.

    Attributes:
        bundle, reference: what was compared.
        provider: execution provider of the bundle.
        precision: of the bundle; it chose the default thresholds, or its provider's did.
        data: what the tokens were, in words.
        tokens: scored tokens, those the perplexities are taken over.
        positions: positions whose logits were compared.
        max_abs_error: largest ``|logit - reference logit|`` over all positions and tokens.
        mean_abs_error: its mean.
        relative_error: ``max_abs_error / max |reference logit|``.
        mean_kl_divergence: ``KL(reference || bundle)`` of the token distributions, in nats, mean
            over positions.
        top1_agreement: fraction of positions at which both find the same token the likeliest.
        top1_agreement_error: its standard error over the choice of text.
        greedy_agreement: both continue the same prompts greedily; the tokens before the first one
            that differs, divided by all tokens generated. After a difference the two texts are
            no longer comparable, so equal tokens behind it do not count. NaN for a masked language
            model.
        perplexity, reference_perplexity: ``exp(mean negative log-likelihood)`` of the scored
            tokens; of a masked language model those are the masked ones, 15 % of the text; of an
            encoder-decoder model all of them, the text being what both sides read.
        perplexity_increase: ``perplexity / reference_perplexity - 1``, as a fraction.
        perplexity_increase_error: its standard error over the choice of text.
        nodes_per_provider: nodes of ONNX Runtime's optimized graph, by provider.
        elsewhere: by operator, those that run elsewhere than on ``provider``.
        thresholds: the limits applied.
        failures: a sentence for each metric that broke its limit, by field name; a list in JSON.
    """

    bundle: str
    reference: str
    provider: str
    precision: str
    data: str
    tokens: int
    positions: int
    max_abs_error: float
    mean_abs_error: float
    relative_error: float
    mean_kl_divergence: float
    top1_agreement: float
    top1_agreement_error: float
    greedy_agreement: float
    perplexity: float
    reference_perplexity: float
    perplexity_increase: float
    perplexity_increase_error: float
    nodes_per_provider: dict[str, int]
    fallback_nodes: dict[str, int]
    thresholds: Thresholds
    failures: dict[str, str]

    @property
    def passed(self) -> bool:
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """For JSON; NaN and infinity, which JSON lacks, become ``None``."""
        data = asdict(self) | {"passed": self.passed, "failures": list(self.failures.values())}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in data.items()
        }


def check_model(
    bundle: str | Path | Bundle,
    reference: str | os.PathLike[str] | Reference,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    strict: bool = False,
    text: str | None = None,
    max_tokens: int = 2048,
    window: int = 512,
    greedy_prompts: int = 4,
    greedy_tokens: int = 32,
    thresholds: Thresholds | None = None,
    progress: Progress | None = None,
) -> AccuracyReport:
    """Compare a bundle with a reference.

    Args:
        bundle: a bundle or ONNX decoder, or a path to one.
        reference: a :class:`~edgetie.harness.accuracy.references.Reference`, or text that
            :func:`~edgetie.harness.accuracy.references.resolve_reference` opens.
        provider: execution provider of the bundle; the reference chose its own. One that this
            onnxruntime lacks runs in an environment of its own
            (:mod:`edgetie.providers.environments`).
        threads: intra-op threads of the bundle.
        strict: fail where the provider leaves nodes to another one.
        text: what to measure on, cut into windows of ``window`` tokens. Without it: a built-in
            text for everything, and seeded random ids for the logit errors. A bundle without
            tokenizer is measured on the random ids alone. A model that hears reads noise before
            each window, the same as the reference, which must be a bundle.
        max_tokens: tokens of the text to use at most.
        window: tokens read at once, without context before them; fewer if a model takes fewer.
        greedy_prompts: prompts to continue, spread over the text.
        greedy_tokens: tokens to generate after each.
        thresholds: limits that replace the default ones of the bundle's precision, each by each.
        progress: told about each window.

    Raises:
        BundleError: if the bundle cannot be read, or has no tokenizer for ``text``.
        ProviderError: if the provider is absent or does not take the model.
        SourceError: if the reference cannot be loaded, or has another vocabulary.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    progress = progress or Stages()
    if window < 1 or max_tokens < 2:
        raise BundleError("window and max_tokens: must be 1 and 2 or more")
    if isinstance(reference, str | os.PathLike):
        progress.stage("Opening the reference")
        reference = resolve_reference(os.fspath(reference), bundle=opened)
    progress.stage("Opening the bundle")
    with open_reference(opened, provider=provider, threads=threads, strict=strict) as actual:
        return _compare(
            actual, reference, provider, text, max_tokens, window, greedy_prompts, greedy_tokens,
            thresholds or Thresholds(), progress,
        )  # fmt: skip


def _compare(
    actual: _Model,
    reference: Reference,
    provider: str,
    text: str | None,
    max_tokens: int,
    window: int,
    greedy_prompts: int,
    greedy_tokens: int,
    thresholds: Thresholds,
    progress: Progress,
) -> AccuracyReport:
    """Run both and hold the one against the other."""
    opened = actual.bundle
    vocab_size = _common_vocabulary(actual, reference)
    window = usable_window(actual, reference, window)
    data = _choose_data(opened, text, max_tokens, vocab_size)

    scored = list(
        samples.scored(opened.task, data.ids, window, data.prefix, data.suffix, data.mask)
    )
    sure = data.is_text and not actual.is_audio_model  # nothing is said in noise
    if sure and samples.too_short(scored, opened.task, data.mask):
        raise BundleError(
            f"{len(data.ids)} tokens are too few to measure predictions on; give a longer --text, "
            "or more --max-tokens"
        )

    progress.stage("Comparing logits")
    errors, predictions = _compare_logits(actual, reference, scored, data.random, window, progress)
    greedy_agreement = math.nan
    if opened.task != "masked-lm":
        progress.stage("Comparing greedy tokens")
        room = window - len(data.prefix)
        prompts = samples.spread(data.ids, greedy_prompts, min(_PROMPT_TOKENS, room // 2))
        greedy_agreement = _greedy_agreement(
            actual,
            reference,
            [data.prefix + prompt for prompt in prompts],
            min(greedy_tokens, room - room // 2),
            progress,
        )

    precision = precision_of(opened)
    computed = "fp16" if precision == "fp32" and find(provider).half else precision
    limits = default_thresholds(computed, on_text=sure).override(thresholds)
    failures = limits.failures(
        relative_error=errors.relative_error,
        mean_kl_divergence=predictions.mean_kl_divergence,
        top1_agreement=predictions.top1_agreement,
        top1_agreement_error=predictions.top1_agreement_error,
        perplexity_increase=predictions.perplexity_increase,
        perplexity_increase_error=predictions.perplexity_increase_error,
    )
    if errors.nonfinite:
        nonfinite = f"logits are NaN or infinite at {errors.nonfinite} positions"
        failures = {"max_abs_error": nonfinite} | failures
    return AccuracyReport(
        bundle=actual.name,
        reference=reference.name,
        provider=provider,
        precision=precision,
        data=f"{data.description}, after noise" if actual.is_audio_model else data.description,
        tokens=predictions.tokens,
        positions=errors.positions,
        max_abs_error=errors.max_abs_error,
        mean_abs_error=errors.mean_abs_error,
        relative_error=errors.relative_error,
        mean_kl_divergence=predictions.mean_kl_divergence,
        top1_agreement=predictions.top1_agreement,
        top1_agreement_error=predictions.top1_agreement_error,
        greedy_agreement=greedy_agreement,
        perplexity=predictions.perplexity,
        reference_perplexity=predictions.reference_perplexity,
        perplexity_increase=predictions.perplexity_increase,
        perplexity_increase_error=predictions.perplexity_increase_error,
        nodes_per_provider=actual.nodes_per_provider,
        fallback_nodes=actual.fallback_nodes,
        thresholds=limits,
        failures=failures,
    )


def _compare_logits(
    actual: Reference,
    reference: Reference,
    scored: list[tuple[Ids, Ids]],
    random: list[int],
    window: int,
    progress: Progress,
) -> tuple[LogitErrors, PredictionErrors]:
    """Run both over every window, keeping the logits of one window at a time."""
    errors, predictions = LogitErrors(), PredictionErrors()
    logits_only = list(samples.windows(random, window))
    count = len(scored) + len(logits_only)
    for index, (ids, targets) in enumerate([*scored, *((ids, None) for ids in logits_only)]):
        progress.advance(index, count)
        ref, act = reference.logits(ids[None]), actual.logits(ids[None])
        errors.add(ref, act)
        if targets is not None:
            predictions.add(ref, act, targets)
    return errors, predictions


def _greedy_agreement(
    actual: Reference,
    reference: Reference,
    prompts: list[list[int]],
    count: int,
    progress: Progress,
) -> float:
    equal = generated = 0
    for index, prompt in enumerate(prompts):
        progress.advance(index, len(prompts))
        tokens = reference.greedy(prompt, count)
        equal += common_prefix(tokens, actual.greedy(prompt, count))
        generated += len(tokens)
    return equal / generated if generated else math.nan


@dataclass
class _Data:
    """What to run: tokens for every metric, and random ones for the logit errors alone.

    ``prefix`` and ``suffix`` are the special tokens around a text, ``mask`` is the mask token.
    """

    description: str
    is_text: bool
    ids: list[int]
    random: list[int]
    prefix: list[int] = field(default_factory=list)
    suffix: list[int] = field(default_factory=list)
    mask: int | None = None


def _choose_data(bundle: Bundle, text: str | None, max_tokens: int, vocab_size: int) -> _Data:
    random = samples.random_ids(min(samples.RANDOM_TOKENS, max_tokens), vocab_size).tolist()
    if not (bundle.directory / TOKENIZER).is_file():
        if text is not None:
            raise BundleError(
                f"{bundle.directory}: no {TOKENIZER}, so --text cannot be read; leave it out"
            )
        return _Data(f"{len(random)} random token ids (no tokenizer)", False, random, [])
    tokenizer = Tokenizer.from_bundle(bundle)
    read = samples.BUILT_IN_TEXT if text is None else text
    ids = tokenizer.encode(read, add_special_tokens=False)[:max_tokens]
    special = (*tokenizer.surrounding, tokenizer.mask_token_id)
    if len(ids) < 2:
        raise BundleError("--text: fewer than two tokens; give a longer text")
    if max(ids) >= vocab_size:
        raise BundleError(
            f"{bundle.directory}: its tokenizer gives token {max(ids)}, but the model has only "
            f"{vocab_size} tokens; they do not belong together"
        )
    if text is not None:
        return _Data(f"{len(ids)} tokens of the given text", True, ids, [], *special)
    words = f"{len(ids)} tokens of the built-in text; logit errors also {len(random)} random ids"
    return _Data(words, True, ids, random, *special)


def usable_window(bundle: _Model, reference: Reference, window: int) -> int:
    """A number of tokens, or what both models take: the manifest tells, else it is halved until it
    fits.
    """
    longest = bundle.longest
    if longest is not None:
        return min(window, longest)
    while True:
        try:
            for model in (bundle, reference):
                model.logits(np.zeros((1, window), np.int64))
        except (BundleError, SourceError):
            if window <= _SMALLEST_WINDOW:
                raise
            window //= 2
        else:
            return window


def _common_vocabulary(bundle: _Model, reference: Reference) -> int:
    one = np.zeros((1, 1), np.int64)
    mine, theirs = len(bundle.logits(one)[0]), len(reference.logits(one)[0])
    if mine != theirs:
        raise SourceError(
            f"{reference.name}: a vocabulary of {theirs} tokens, but {bundle.name} has {mine}; "
            "compare a bundle with the model it was made from"
        )
    return mine
