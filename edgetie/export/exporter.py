"""``export``: a source becomes a bundle."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from edgetie.bundle.atomic import atomic_directory, check_destination
from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.bundle.manifest import Manifest, Signature, describe_tensors, write_manifest
from edgetie.bundle.merged_decoder import write_merged
from edgetie.bundle.model_config import read_token_ids
from edgetie.bundle.names import AUDIO_LM, DATA, ENCODER, LAST_TOKEN_NODE
from edgetie.errors import EdgetieError, ExportError
from edgetie.export.genai_config import write_genai_config
from edgetie.export.optimize import optimize
from edgetie.export.tasks.base import Task
from edgetie.export.tasks.comparison import Agreement, ReferenceRun
from edgetie.export.tasks.trial_run import trial_run
from edgetie.export.tracing.trace import trace
from edgetie.graph.model_files import write_models
from edgetie.passes.run import PassReport
from edgetie.progress import Stages
from edgetie.runtime.memory import read_memory, release_freed_memory
from edgetie.sources.load import load_source
from edgetie.sources.source import Source
from edgetie.targets import find_target
from edgetie.ties.groups import find_shared_ties, share_across, ties_of_file, verify_ties
from edgetie.ties.torch_parameters import partial_ties, tied_parameters

_FUSED_OPERATORS = (
    "GroupQueryAttention",
    "MultiHeadAttention",
    "Attention",
    "SkipSimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "RMSNormalization",
    "LayerNormalization",
    "QuickGelu",
    "FastGelu",
    "Gelu",
)

_VERSIONED = ("edgetie", "torch", "transformers", "onnxruntime", "onnx")


@dataclass(frozen=True)
class ExportReport:
    """What an export did and measured.

    Attributes:
        bundle: the bundle, opened.
        seconds: where the time went, by stage.
        passes: what each graph pass did.
        agreement: logit errors against torch.
        weights_bytes: size of the external-data file.
        unique_parameter_bytes: bytes of the module's parameters, each counted once.
        peak_bytes: largest resident memory of this process so far.
    """

    bundle: Bundle
    seconds: dict[str, float]
    passes: list[PassReport]
    agreement: Agreement
    weights_bytes: int
    unique_parameter_bytes: int
    peak_bytes: int

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest


def export_model(
    source: str | Source,
    output: str | os.PathLike[str],
    *,
    target: str = "cpu",
    precision: str = "fp32",
    logits: str = "last",
    task: str = "auto",
    force: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    progress: Stages | None = None,
) -> ExportReport:
    """Export a language model to an ONNX bundle, its tied weights kept as one.

    Args:
        source: what :func:`edgetie.sources.load.load_source` takes, or an already loaded source.
        output: directory to write; complete or not at all.
        target: where the bundle will run (:data:`edgetie.targets.TARGETS`); it chooses the forms of
            the graph.
        precision: ``fp32`` or ``fp16`` (for GPUs: ONNX Runtime's CPU kernels would copy the
            weights to fp32).
        logits: ``last``, of each row's last token, or ``all``; masked language models have all.
        task: what the model does, where its configuration does not tell
            (:data:`edgetie.sources.task_detection.TASKS`).
        force: replace an existing bundle.
        trust_remote_code: allow a model directory to run code of its own.
        allow_pickle: allow pickled weights.
        progress: told about each stage.

    Raises:
        SourceError: if the source is no model.
        ExportError: if torch or ONNX Runtime cannot handle it, not as the target needs it, or its
            logits are wrong.
        EdgetieError: if there is no such target, precision or kind of logits.
        TieError: if a pass parted a tied weight.
        BundleError: if ``output`` is in the way or the disk is full.
    """
    fused = find_target(target).fused
    for name, value, known in (
        ("precision", precision, ("fp32", "fp16")), ("logits", logits, ("last", "all")),
    ):  # fmt: skip
        if value not in known:
            raise EdgetieError(f"{name} {value!r}: unknown; one of {', '.join(known)}")
    check_destination(output, force=force)
    stages = progress or Stages()

    def load() -> Source:
        if isinstance(source, Source):
            return source
        return load_source(
            source, task=task, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
        )

    if not isinstance(source, Source):
        stages.stage("load")
    held = [load()]  # emptied by who works with it: the weights go when they are written
    name = held[0].name
    stages.stage("probe")
    modes = _modes(held[0].module)
    plan = trial_run(held[0])
    try:
        expected = plan.run_reference(held[0].module)
    except ExportError as error:
        raise ExportError(f"{name}: {error}") from error
    for mode, value in _modes(held[0].module).items():
        if mode in modes and modes[mode] != value:
            raise ExportError(
                f"{name}: a few tokens turned {mode} from {modes[mode]} to {value}, so longer "
                f"texts would be computed in another way; set {mode} to {value} in its "
                "configuration to export that"
            )
    if not np.isfinite(expected.logits).all():
        raise ExportError(
            f"{name}: its logits in torch are NaN or infinite, so it cannot be verified; "
            "look for NaN in its weights"
        )
    job = _Job(expected, Path(output), precision, logits == "last", fused, force, stages)
    try:
        return job.run(held, plan)
    except _Disagreement as error:
        plain = plan.without_cache(f"with one, {error}")
        if plain is None or error.plain:
            raise ExportError(f"{name}: {error}; nothing was written") from error
        held.append(load())
        try:
            return job.run(held, plain)
        except (_Disagreement, ExportError) as second:
            raise ExportError(
                f"{name}: {error}; without a KV cache, {second}; nothing was written"
            ) from second


def _modes(module: torch.nn.Module) -> dict[str, str]:
    """Settings of a model that are words: by name, of its configuration and its parts."""
    parts = (getattr(module, "config", None), *module.modules())
    return {
        name: value
        for part in parts
        for name, value in getattr(part, "__dict__", {}).items()
        if isinstance(value, str) and not name.startswith("_")
    }


class _Disagreement(Exception):
    """A written model that does not compute what torch does, and says what it does instead."""

    def __init__(self, text: str, *, plain: bool) -> None:
        super().__init__(text)
        self.plain = plain


@dataclass(frozen=True)
class _Job:
    """What is exported to where, whichever way its attention is computed."""

    expected: ReferenceRun
    output: Path
    precision: str
    last_only: bool
    fused: bool
    force: bool
    stages: Stages

    def run(self, held: list[Source], plan: Task) -> ExportReport:
        """Trace, optimize, write, verify.

        Args:
            held: the source, taken out of the list.
            plan: what to trace.

        Raises:
            _Disagreement: if the written model's logits are wrong, or it does not run.
        """
        source, stages, precision = held.pop(), self.stages, self.precision
        parameters = tied_parameters(source.module)
        count = sum(parameter.numel() for parameter in source.module.parameters())
        if precision == "fp16":
            _halve(source.module)
        traced = trace(source, plan, last_only=self.last_only, fused=self.fused, progress=stages)
        plan = traced.task
        stages.stage("passes")
        passes = optimize(traced.models, plan, parameters, fused=self.fused)
        unfused = [
            *partial_ties(source.module),
            *traced.unfused,
            *(text for report in passes for text in report.skipped),
        ]
        manifest = Manifest(
            source={
                "kind": source.kind,
                "name": source.name,
                "architecture": source.architecture,
                "unused": list(source.unused),
            },
            task=plan.name,
            precision=precision,
            signature=_signature(traced.models, plan),
            encoder=_encoder_signature(traced.models),
            ties=[],
            unique_parameters=count,
            versions={package: version(package) for package in _VERSIONED},
            fusion={"operators": _count_operators(traced.models), "unfused": unfused},
        )
        config, save_extras = source.config, source.save_extras
        with atomic_directory(self.output, force=self.force) as directory:
            stages.stage("write")
            same = share_across(traced.models)
            paths = write_models(traced.models, directory, data=DATA, same=same, progress=stages)
            manifest.ties = find_shared_ties(traced.models, parameters)
            del source, traced  # the module's weights are not needed beside the file's
            release_freed_memory()
            save_extras(directory)
            token_ids = read_token_ids(directory, has_encoder=manifest.encoder is not None)
            manifest.signature = replace(manifest.signature, **token_ids)
            write_genai_config(directory, config, plan, manifest.signature)
            stages.stage("verify")
            for path in paths:
                ties = ties_of_file(manifest.ties, path.name)
                verify_ties(ir.load(path), ties, where=f"the file {path.name}")
            dtype = np.float16 if precision == "fp16" else np.float32
            try:
                agreement = plan.compare(directory, self.expected, dtype)
            except ExportError as error:
                raise _Disagreement(str(error), plain=not plan.cache) from error
            _require_agreement(agreement, precision, plain=not plan.cache)
            if manifest.encoder is not None:
                write_merged(directory)
            manifest.accuracy = {"against": "torch fp32", **agreement.to_dict()}
            stages.stage("hash")
            write_manifest(directory, manifest)
        stages.finish()
        bundle = open_bundle(self.output)
        return ExportReport(
            bundle=bundle,
            seconds=dict(stages.seconds),
            passes=passes,
            agreement=agreement,
            weights_bytes=sum(path.stat().st_size for path in bundle.data_files),
            unique_parameter_bytes=count * np.dtype(dtype).itemsize,
            peak_bytes=read_memory().peak,
        )


def _halve(module: torch.nn.Module) -> None:
    """Weights to fp16, and tables kept as buffers, which are added to activations; vectors, such as
    the frequencies of rotary embeddings, stay as precise as they are.
    """
    for parameter in module.parameters():
        parameter.data = parameter.data.half()
    for buffer in module.buffers():
        if buffer.dtype == torch.float32 and buffer.ndim > 1:
            buffer.data = buffer.data.half()


def _signature(models: Mapping[str, ir.Model], task: Task) -> Signature:
    model = list(models.values())[-1]
    fused = sum(1 for node in model.graph if node.op_type == "GroupQueryAttention")
    last = any(node.name == LAST_TOKEN_NODE for node in model.graph)
    return Signature(
        inputs=describe_tensors(model.graph.inputs),
        outputs=describe_tensors(model.graph.outputs),
        logits="last" if last else "all",
        cache_in_place=bool(fused) and fused == task.cached_attentions,
        max_positions=task.max_positions,
        padding=_padding(task, fused),
        vocab_size=task.vocab_size,
        audio_token_id=task.audio_token_id,
    )


def _padding(task: Task, fused: int) -> str:
    """Where a decoder's prompts may be padded before it continues them: without
    GroupQueryAttention, which moves tokens together, distances count what lies between them.
    """
    moves = bool(task.cache) and fused == task.cached_attentions
    return "both" if moves or task.name not in ("causal-lm", AUDIO_LM) else "left"


def _encoder_signature(models: Mapping[str, ir.Model]) -> Signature | None:
    if ENCODER not in models:
        return None
    graph = models[ENCODER].graph
    return Signature(describe_tensors(graph.inputs), describe_tensors(graph.outputs), logits="all")


def _count_operators(models: Mapping[str, ir.Model]) -> dict[str, int]:
    nodes = [node for model in models.values() for node in model.graph]
    counts = Counter(node.op_type for node in nodes)
    rotary = sum(1 for node in nodes if "do_rotary" in node.attributes)
    return {
        **{name: counts[name] for name in _FUSED_OPERATORS if counts[name]},
        "rotary inside attention": rotary,
        "nodes": len(nodes),
    }


def _require_agreement(agreement: Agreement, precision: str, *, plain: bool) -> None:
    limit = 2e-2 if precision == "fp16" else 1e-3
    if not agreement.relative <= limit:
        raise _Disagreement(
            "the exported model's logits differ from torch's by "
            f"{agreement.relative:.1e} of the largest logit (prefill {agreement.prefill:.1e}, "
            f"cached {agreement.cached:.1e}, padded {agreement.padded:.1e})",
            plain=plain,
        )
