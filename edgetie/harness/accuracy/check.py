"""Accuracy of a bundle against a reference: logits, KL divergence, perplexity, greedy tokens."""

import contextlib
import logging
import math
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.errors import BundleError, EdgetieError, SourceError
from edgetie.harness.accuracy import samples
from edgetie.harness.accuracy.metrics import (
    EmbeddingErrors,
    LogitErrors,
    PredictionErrors,
    PredictionMetrics,
    common_prefix,
)
from edgetie.harness.accuracy.references import BundleReference, Reference, resolve_reference
from edgetie.harness.accuracy.remote_reference import RemoteReference, open_reference
from edgetie.harness.accuracy.thresholds import Thresholds, default_thresholds, precision_of
from edgetie.harness.environment import describe_environment
from edgetie.progress import Progress, Stages
from edgetie.providers.registry import AUTO, find_provider
from edgetie.runtime.text.tokenizer import TOKENIZER, Tokenizer

logger = logging.getLogger(__name__)

Ids = npt.NDArray[np.int64]
_Candidate = BundleReference | RemoteReference

_LOGIT_METRICS = ("positions", "max_abs_error", "mean_abs_error", "relative_error")
_PROMPT_TOKENS = 32
_SMALLEST_WINDOW = 16
_ENCODED = 8  # images or audio for the encoder alone
_CHARACTERS_PER_TOKEN = 16
"""Characters of a file read for each token needed. Hardly any token is longer."""


@dataclass(frozen=True, kw_only=True)
class AccuracyReport(PredictionMetrics):
    """What :func:`check_model` measured. A value without tokens to measure it on is NaN.

    The metrics of :class:`~edgetie.harness.accuracy.metrics.PredictionMetrics` are fields as well.
    Windows do not overlap. Each starts without context, so the perplexity of both models is a
    little above that of a sliding window. A masked language model is scored on the masked tokens,
    15 % of the text, an encoder-decoder model on all of them, because both its sides read the text.

    Attributes:
        bundle, reference: what was compared.
        provider, precision: of the bundle; the provider that ran it, never ``auto``. They chose
            the default thresholds.
        data: description of the tokens.
        positions: positions whose logits were compared.
        max_abs_error, mean_abs_error: of ``|logit - reference logit|``, all positions and tokens.
        relative_error: ``max_abs_error / max |reference logit|``.
        greedy_agreement: tokens before the first difference when both continue the same prompts
            greedily, divided by all tokens generated. NaN for a masked language model.
        encoder_similarity: mean cosine similarity of what the encoders of two bundles compute of
            the images or audio. NaN for models without.
        encoder_error: norm of the difference of these, divided by the norm of the reference.
        nodes_per_provider: nodes of ONNX Runtime's optimized graph, by provider.
        fallback_nodes: nodes that run on another provider than ``provider``, by operator.
        environment: processor, system, versions and date of the measurement.
        thresholds: the limits applied.
        failures: a sentence for each metric that broke its limit, by field name; a list in JSON.
    """

    bundle: str
    reference: str
    provider: str
    precision: str
    data: str
    positions: int
    max_abs_error: float
    mean_abs_error: float
    relative_error: float
    greedy_agreement: float
    encoder_similarity: float
    encoder_error: float
    nodes_per_provider: dict[str, int]
    fallback_nodes: dict[str, int]
    environment: dict[str, str]
    thresholds: Thresholds
    failures: dict[str, str]

    @property
    def passed(self) -> bool:
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types. NaN and infinity, which JSON lacks, become ``None``."""
        data = asdict(self) | {"passed": self.passed, "failures": list(self.failures.values())}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in data.items()
        }


def check_model(
    bundle: str | Path | Bundle,
    reference: str | os.PathLike[str] | Reference,
    *,
    provider: str = AUTO,
    threads: int | None = None,
    strict: bool = False,
    text: str | Path | None = None,
    images: Path | None = None,
    adapter: str | None = None,
    adapter_source: str | os.PathLike[str] | None = None,
    max_tokens: int = 2048,
    window: int = 512,
    greedy_prompts: int = 4,
    greedy_tokens: int = 32,
    thresholds: Thresholds | None = None,
    max_relative_error: float | None = None,
    max_kl: float | None = None,
    min_top1: float | None = None,
    max_perplexity_increase: float | None = None,
    progress: Progress | None = None,
) -> AccuracyReport:
    """Compare a bundle with a reference.

    Args:
        bundle: a bundle or ONNX decoder, or a path to one.
        reference: a :class:`~edgetie.harness.accuracy.references.Reference`, or text that
            :func:`~edgetie.harness.accuracy.references.resolve_reference` opens.
        provider: execution provider of the bundle. ``auto`` is edgetie's own if it is here and
            runs nodes of the model, otherwise ``cpu``. One that this onnxruntime lacks runs in a
            separate environment (:mod:`edgetie.providers.environments`). A reference in ONNX
            Runtime always runs on ``cpu``.
        threads: intra-op threads of the bundle.
        strict: fail if the provider leaves nodes to another one; ``auto`` may.
        text: what to measure on: the text itself, or the :class:`~pathlib.Path` of a UTF-8 file.
            By default a built-in text, and seeded random ids for the logit errors. A bundle without
            tokenizer is measured on the random ids alone. An audio model reads noise before each
            window, and a model that reads images one of ``images``, as does the reference, which
            must be a bundle.
        images: an image file or a directory of them
            (:class:`~edgetie.runtime.images.samples.SampleImages`). A reference that is open has
            its own. By default images are drawn.
        adapter: name of a LoRA adapter to run both with. A reference that is open has its own.
        adapter_source: directory of that adapter in peft's format, if the reference is in torch.
        max_tokens: most tokens of the text to use.
        window: tokens read at once, without context before them; fewer if a model takes fewer.
        greedy_prompts, greedy_tokens: prompts to continue, and tokens to generate after each.
        thresholds: limits that replace the default ones of the bundle's precision, one by one.
        max_relative_error, max_kl, min_top1, max_perplexity_increase: limits that replace those of
            ``thresholds``, see :class:`~edgetie.harness.accuracy.thresholds.Thresholds`.
        progress: notified of each window.

    Raises:
        EdgetieError: if a limit or a number is out of its range.
        BundleError: if the bundle or ``text`` cannot be read, or it has no tokenizer for ``text``.
        ProviderError: if the provider is absent or does not take the model.
        SourceError: if the reference cannot be loaded, or has another vocabulary.
    """
    limits = (thresholds or Thresholds()).override(
        Thresholds(max_relative_error, max_kl, min_top1, max_perplexity_increase)
    )
    for name, value, least in (("window", window, 1), ("max_tokens", max_tokens, 2)):
        if value < least:
            raise EdgetieError(f"must be {least} or more", parameter=name, value=value)
    text = _read_text(text, max_tokens)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    progress = progress or Stages()
    if isinstance(reference, str | os.PathLike):
        progress.stage("Opening the reference")
        reference = resolve_reference(
            os.fspath(reference),
            bundle=opened,
            images=images,
            adapter=adapter,
            adapter_source=adapter_source,
        )
    progress.stage("Opening the bundle")
    with open_reference(
        opened, provider=provider, threads=threads, strict=strict, images=images, adapter=adapter
    ) as candidate:
        vocab_size = _common_vocabulary(candidate, reference)
        window = usable_window(candidate, reference, window)
        data = _choose_data(opened, text, max_tokens, vocab_size)
        comparison = _Comparison(candidate, reference, data, window, progress)
        return comparison.report(greedy_prompts, greedy_tokens, limits)


@dataclass
class _Data:
    """Tokens for every metric, random ones for the logit errors alone, and the special tokens."""

    description: str
    is_text: bool
    ids: list[int]
    random: list[int]
    prefix: list[int] = field(default_factory=list)
    suffix: list[int] = field(default_factory=list)
    mask: int | None = None


@dataclass(frozen=True)
class _Comparison:
    """Two models, and what both of them read."""

    candidate: _Candidate
    reference: Reference
    data: _Data
    window: int
    progress: Progress

    def report(self, greedy_prompts: int, greedy_tokens: int, limits: Thresholds) -> AccuracyReport:
        """Run both models and compare their outputs; ``limits`` replace the default ones."""
        bundle, data = self.candidate.bundle, self.data
        scored = list(
            samples.scored(bundle.task, data.ids, self.window, data.prefix, data.suffix, data.mask)
        )
        is_predictable = data.is_text and not self.candidate.media
        if is_predictable and samples.too_short(scored, bundle.task, data.mask):
            message = f"{len(data.ids)} tokens are too few to measure predictions on; give a longer"
            raise BundleError(f"{message} text, or use more tokens of it", parameter="text")
        self.progress.stage("Comparing logits")
        errors, predictions = self._compare_logits(scored)
        embeddings = self._compare_encoders()
        greedy_agreement = math.nan
        if bundle.task != "masked-lm":
            self.progress.stage("Comparing greedy tokens")
            greedy_agreement = self._greedy_agreement(greedy_prompts, greedy_tokens)
        precision = precision_of(bundle)
        is_half = find_provider(self.candidate.provider).half
        computed = "fp16" if is_half and precision == "fp32" else precision
        limits = default_thresholds(computed, on_text=is_predictable).override(limits)
        failures = limits.failures(predictions, relative_error=errors.relative_error)
        if errors.nonfinite:
            nonfinite = f"logits are NaN or infinite at {errors.nonfinite} positions"
            failures = {"max_abs_error": nonfinite} | failures
        media = f", after {self.candidate.media}" if self.candidate.media else ""
        adapter = self.candidate.adapter
        return AccuracyReport(
            bundle=self.candidate.name + (f" with {adapter}" if adapter is not None else ""),
            reference=self.reference.name,
            provider=self.candidate.provider,
            precision=precision,
            data=data.description + media,
            greedy_agreement=greedy_agreement,
            encoder_similarity=embeddings.similarity,
            encoder_error=embeddings.relative_error,
            nodes_per_provider=self.candidate.nodes_per_provider,
            fallback_nodes=self.candidate.fallback_nodes,
            environment=describe_environment(self.candidate.onnxruntime_version),
            thresholds=limits,
            failures=failures,
            **vars(predictions),
            **{name: getattr(errors, name) for name in _LOGIT_METRICS},
        )

    def _compare_logits(
        self, scored: list[tuple[Ids, Ids]]
    ) -> tuple[LogitErrors, PredictionMetrics]:
        """Run both over every window, keeping the logits of one window at a time."""
        errors, predictions = LogitErrors(), PredictionErrors()
        unscored = [(ids, None) for ids in samples.windows(self.data.random, self.window)]
        for index, (ids, targets) in enumerate([*scored, *unscored]):
            self.progress.advance(index, len(scored) + len(unscored))
            logits = self.reference.logits(ids[None]), self.candidate.logits(ids[None])
            errors.add(*logits)
            if targets is not None:
                predictions.add(*logits, targets)
        return errors, predictions.metrics

    def _compare_encoders(self) -> EmbeddingErrors:
        """Run the encoders of two bundles on a few of their images, or on audio."""
        errors = EmbeddingErrors()
        if self.candidate.media and isinstance(self.reference, _Candidate):
            for index in range(_ENCODED):
                ids = np.array([[index]])
                pairs = zip(self.reference.encode(ids), self.candidate.encode(ids), strict=True)
                for reference, candidate in pairs:
                    errors.add(reference, candidate)
        return errors

    def _greedy_agreement(self, prompts: int, count: int) -> float:
        """Equal tokens before the first difference, as a share of all tokens generated."""
        longest = self.window - len(self.data.prefix)
        count = min(count, longest - longest // 2)
        starts = samples.spread(self.data.ids, prompts, min(_PROMPT_TOKENS, longest // 2))
        equal = generated = 0
        for index, start in enumerate(starts):
            self.progress.advance(index, len(starts))
            prompt = self.data.prefix + start
            tokens = self.reference.greedy(prompt, count)
            equal += common_prefix(tokens, self.candidate.greedy(prompt, count))
            generated += len(tokens)
        return equal / generated if generated else math.nan


def _read_text(text: str | Path | None, max_tokens: int) -> str | None:
    """Read a file as far as it is needed; refuse text that is the name of a file."""
    if isinstance(text, Path):
        try:
            with text.open(encoding="utf-8") as file:
                return file.read(min(max_tokens * _CHARACTERS_PER_TOKEN, sys.maxsize))
        except (OSError, UnicodeDecodeError) as error:
            message = f"not readable as UTF-8 text ({error})"
            raise BundleError(message, parameter="text", value=str(text)) from error
    with contextlib.suppress(OSError):  # text is longer than a name can be
        if text is not None and Path(text).is_file():
            message = "is the name of a file; pass a pathlib.Path to read it"
            raise EdgetieError(message, parameter="text", value=text)
    return text


def _choose_data(bundle: Bundle, text: str | None, max_tokens: int, vocab_size: int) -> _Data:
    random = samples.random_ids(min(samples.RANDOM_TOKENS, max_tokens), vocab_size).tolist()
    if not (bundle.directory / TOKENIZER).is_file():
        if text is not None:
            problem = f"no {TOKENIZER}, so the text cannot be read; leave it out"
            raise BundleError(f"{bundle.directory}: {problem}", parameter="text")
        return _Data(f"{len(random)} random token ids (no tokenizer)", False, random, [])
    tokenizer = Tokenizer.from_bundle(bundle)
    source = samples.BUILT_IN_TEXT if text is None else text
    ids = tokenizer.encode(source, add_special_tokens=False)[:max_tokens]
    special = (*tokenizer.surrounding, tokenizer.mask_token_id)
    if len(ids) < 2:
        raise BundleError("fewer than two tokens; give a longer text", parameter="text")
    if max(ids) >= vocab_size:
        raise BundleError(
            f"{bundle.directory}: its tokenizer gives token {max(ids)}, but the model has only "
            f"{vocab_size} tokens; they do not belong together"
        )
    if text is not None:
        return _Data(f"{len(ids)} tokens of the given text", True, ids, [], *special)
    description = (
        f"{len(ids)} tokens of the built-in text; logit errors also {len(random)} random ids"
    )
    return _Data(description, True, ids, random, *special)


def usable_window(bundle: _Candidate, reference: Reference, window: int) -> int:
    """Return the number of tokens that both models take: ``window``, or fewer.

    Without a limit in the manifest, ``window`` is halved until it fits.
    """
    if bundle.longest is not None:
        return min(window, bundle.longest)
    while True:
        try:
            for model in (bundle, reference):
                model.logits(np.zeros((1, window), np.int64))
            return window
        except (BundleError, SourceError):
            if window <= _SMALLEST_WINDOW:
                raise
            logger.debug("%d tokens are too many", window, exc_info=True)
            window //= 2


def _common_vocabulary(bundle: _Candidate, reference: Reference) -> int:
    one = np.zeros((1, 1), np.int64)
    size, reference_size = len(bundle.logits(one)[0]), len(reference.logits(one)[0])
    if size != reference_size:
        raise SourceError(
            f"{reference.name}: a vocabulary of {reference_size} tokens, but {bundle.name} has "
            f"{size}; compare a bundle with the model it was made from"
        )
    return size
