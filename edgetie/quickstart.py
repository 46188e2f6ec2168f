"""The whole journey on a real model: export, quantize, inspect, check, measure, generate."""

import os
from dataclasses import dataclass
from pathlib import Path

from edgetie.bundle.atomic import check_destination
from edgetie.downloads import demo_model, demo_text
from edgetie.errors import EdgetieError
from edgetie.export.exporter import ExportReport, export_model
from edgetie.harness.accuracy.check import AccuracyReport, check_model, usable_window
from edgetie.harness.accuracy.references import BundleReference
from edgetie.harness.latency.bench import LatencyReport, bench_model
from edgetie.harness.ties.inspect import Inspection, inspect_model
from edgetie.progress import Stages
from edgetie.quantize.quantizer import QuantizeReport, quantize_model
from edgetie.runtime.decoding.text_generation import generate_text
from edgetie.runtime.session import open_session
from edgetie.runtime.text.tokenizer import Tokenizer

PROMPTS = ("What is the capital of France?", "Explain in one sentence why the sky is blue.")
_ANSWER_TOKENS = 48
ACCURACY_TOKENS = 2048
"""Enough for a first look. The report states the standard errors."""
_TIMED_TOKENS = 192  # a third of them generated; fewer if a model takes fewer


@dataclass(frozen=True)
class QuickstartReport:
    """Every report of the journey, in order."""

    exported: ExportReport
    quantized: QuantizeReport
    inspected_fp32: Inspection
    inspected_int8: Inspection
    accuracy: AccuracyReport
    latency: LatencyReport
    answers: tuple[tuple[str, str], ...]


def quickstart(
    output: str | os.PathLike[str],
    *,
    model: str | None = None,
    threads: int | None = None,
    repeat: int = 2,
    accuracy_tokens: int = ACCURACY_TOKENS,
    force: bool = False,
    progress: Stages | None = None,
) -> QuickstartReport:
    """Run everything edgetie does, on SmolLM2-135M-Instruct or on another model.

    Args:
        output: directory for the bundles ``fp32`` and ``int8``.
        model: what :func:`load_source` takes. By default the demonstration model, downloaded once
            with a novel to measure its accuracy on (:mod:`edgetie.downloads`).
        threads: intra-op threads of the measurements.
        repeat: runs of the latency measurement.
        accuracy_tokens: tokens to measure accuracy on; more make its standard errors smaller.
        force: replace existing bundles.
        progress: notified of each stage.

    Raises:
        EdgetieError: what any step raises.
    """
    if accuracy_tokens < 2:
        raise EdgetieError("must be 2 or more", parameter="accuracy_tokens", value=accuracy_tokens)
    stages = progress or Stages()
    fp32, int8 = Path(output) / "fp32", Path(output) / "int8"
    for bundle in (fp32, int8):
        check_destination(bundle, force=force)
    text = None
    if model is None:
        stages.stage("download")
        model, text = str(demo_model()), demo_text()
    exported = export_model(model, fp32, dequantize=True, force=force, progress=stages)
    quantized = quantize_model(fp32, int8, force=force, progress=stages)
    inspected_fp32 = inspect_model(fp32, progress=stages)
    inspected_int8 = inspect_model(int8, progress=stages)
    reference = BundleReference(fp32)
    accuracy = check_model(
        int8, reference, threads=threads, text=text, max_tokens=accuracy_tokens,
        greedy_prompts=1, progress=stages,
    )  # fmt: skip
    answers: tuple[tuple[str, str], ...] = ()
    length = usable_window(BundleReference(int8), reference, _TIMED_TOKENS)
    new = length // 3
    del reference  # and its session
    latency = bench_model(
        int8, against=fp32, threads=threads, repeat=repeat, prompt_tokens=length - new,
        new_tokens=new, progress=stages,
    )  # fmt: skip
    if exported.manifest.task in ("causal-lm", "seq2seq-lm"):
        stages.stage("generate")
        answers = _answers(int8, threads)
    stages.finish()
    return QuickstartReport(
        exported, quantized, inspected_fp32, inspected_int8, accuracy, latency, answers
    )


def _answers(path: Path, threads: int | None) -> tuple[tuple[str, str], ...]:
    """Let the model answer, if it comes with a tokenizer; return each prompt and its answer."""
    session = open_session(path, threads=threads)
    if not (path / "tokenizer.json").is_file():
        return ()
    tokenizer = Tokenizer.from_bundle(session.bundle)
    answers = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        if tokenizer.chat_template is not None:
            chat = tokenizer.chat_prompt([{"role": "user", "content": prompt}])
            ids = tokenizer.encode(chat, add_special_tokens=False)
        chunks = generate_text(session, tokenizer, [ids], max_new_tokens=_ANSWER_TOKENS)
        answers.append((prompt, "".join(chunk.text for chunk in chunks).strip()))
    return tuple(answers)
