"""Export a source to a bundle: trace, optimize, write, verify."""

from __future__ import annotations

import functools
import gc
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from edgetie.bundle.atomic import atomic_directory, check_destination
from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.bundle.embedding_graphs import write_embedding_graphs
from edgetie.bundle.manifest import Manifest, Signature, describe_tensors, write_manifest
from edgetie.bundle.merged_decoder import write_merged
from edgetie.bundle.model_config import declare_ties, read_token_ids
from edgetie.bundle.names import AUDIO_LM, DATA, ENCODER, IMAGE_LM, LAST_TOKEN_NODE
from edgetie.errors import EdgetieError, ExportError
from edgetie.export.adapters import Adapters, adapted, read_adapters
from edgetie.export.comparison import Agreement, ReferenceRun
from edgetie.export.genai_config import write_genai_config
from edgetie.export.optimize import optimize
from edgetie.export.reference import run_reference
from edgetie.export.tasks.base import Task
from edgetie.export.tracing.plans import DisagreementError, TracePlan, list_plans, try_plans
from edgetie.export.tracing.trace import trace
from edgetie.graph.model_files import write_models
from edgetie.passes.add_adapter_inputs import AddAdapterInputs
from edgetie.passes.base import PassReport, run_passes
from edgetie.progress import Stages
from edgetie.providers.registry import AUTO, OWN, find_provider
from edgetie.quantize.keep_quantized import keep_quantized, require_keepable, with_tied_names
from edgetie.runtime.adapters import require_adapter_name
from edgetie.runtime.memory import read_memory, release_heap
from edgetie.sources.load import load_source
from edgetie.sources.source import Source
from edgetie.targets import CHECKPOINT, find_target
from edgetie.ties.groups import find_shared_ties, share_across, ties_of_file, verify_ties
from edgetie.ties.torch_parameters import has_tied_head, partial_ties, tied_parameters

_FUSED_OPERATORS = (
    "GroupQueryAttention", "MultiHeadAttention", "Attention", "SkipSimplifiedLayerNormalization",
    "SkipLayerNormalization", "RMSNormalization", "LayerNormalization", "QuickGelu", "FastGelu",
    "Gelu",
)  # fmt: skip

_PACKAGES = ("edgetie", "torch", "transformers", "onnxruntime", "onnx")


@dataclass(frozen=True)
class ExportReport:
    """What an export did and measured.

    Attributes:
        bundle: the bundle, opened.
        seconds: time of each stage.
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
    adapters: Mapping[str, str | os.PathLike[str]] | None = None,
    force: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    dequantize: bool = False,
    progress: Stages | None = None,
) -> ExportReport:
    """Export a language model to an ONNX bundle with its tied weights stored once.

    Weights that a checkpoint has quantized are stored as they are: the same integers and scales.

    Args:
        source: what :func:`edgetie.sources.load.load_source` takes, or an already loaded source.
        output: directory to write; complete or not at all.
        target: decides the operators of the graph, see :data:`edgetie.targets.TARGETS`.
        precision: ``fp32`` or ``fp16``, for GPUs: the CPU would copy the weights to fp32.
        logits: ``last`` of each batch item or ``all``; masked language models have all.
        task: what the model does, see :data:`edgetie.sources.task_detection.TASKS`.
        adapters: directories of LoRA adapters in peft's format, by the names to switch them with.
        force: replace an existing bundle.
        trust_remote_code: allow a model directory to run its own code.
        allow_pickle: allow pickled weights.
        dequantize: export quantized weights of a checkpoint in floating point.
        progress: notified of each stage.

    Raises:
        SourceError: if the source is not a model, has quantized weights that cannot be kept, or an
            adapter is not one of it.
        ExportError: if the model cannot be exported for the target, or its logits are wrong.
        EdgetieError: if the target, the precision or the kind of logits is unknown, or the name of
            an adapter is not one.
        TieError: if a pass separated a tied weight.
        BundleError: if ``output`` is in the way or the disk is full.
    """
    fused = find_target(target).fused
    for name, value, choices in (
        ("precision", precision, ("fp32", "fp16")), ("logits", logits, ("last", "all")),
    ):  # fmt: skip
        if value not in choices:
            message = f"unknown; one of {', '.join(choices)}"
            raise EdgetieError(message, parameter=name, value=value)
    for name in adapters or {}:
        require_adapter_name(name)
    check_destination(output, force=force)
    stages = progress or Stages()

    def load() -> Source:
        if isinstance(source, Source):
            return source
        stages.stage("load")
        return load_source(
            source,
            task=task,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            dequantize=dequantize,
        )

    get_source = functools.cache(load)
    name = get_source().name
    if get_source().quantized:
        require_keepable(name, target, precision)
    stages.stage("probe")
    model_task, reference = run_reference(get_source())
    added = read_adapters(get_source(), model_task, adapters or {})
    references = [reference]
    for adapter_name, adapter in added.by_name.items():
        with adapted(get_source().module, adapter):
            run = model_task.run_reference(get_source().module)
        references.append(replace(run, adapter=adapter_name))
    plans = list_plans(name, model_task, fused=fused)
    options = _Options(precision, logits == "last", fused, force)
    export = _Export(get_source, references, Path(output), options, added, stages)
    return try_plans(name, plans, export.run)


@dataclass(frozen=True)
class _Options:
    """What the caller asked for, see :func:`export_model`."""

    precision: str
    last_only: bool
    fused: bool
    force: bool


@dataclass(frozen=True)
class _Export:
    """Export by one plan, see :meth:`run`.

    ``get_source`` is a cached function: its cache is cleared as soon as the weights are in a file.
    The first of ``references`` is of the base, the others of its adapters.
    """

    get_source: functools._lru_cache_wrapper[Source]
    references: Sequence[ReferenceRun]
    output: Path
    options: _Options
    adapters: Adapters
    stages: Stages

    def run(self, plan: TracePlan, failures: list[str]) -> ExportReport:
        """Trace, optimize, write and verify; ``failures`` tells why earlier plans failed.

        Raises:
            ExportError, UnfusableError: if the model cannot be traced by this plan.
            DisagreementError: if the written model's logits are wrong, or it does not run.
        """
        dtype = np.float16 if self.options.precision == "fp16" else np.float32
        with atomic_directory(self.output, force=self.options.force) as directory:
            config, save_extras = self.get_source().config, self.get_source().save_extras
            tied_head = has_tied_head(self.get_source().module)
            paths, task, manifest, passes = self._write(plan, failures, directory)
            self.get_source.cache_clear()
            gc.collect()
            release_heap()
            save_extras(directory)
            if tied_head is not None:
                declare_ties(directory, tied_head)
            token_ids = read_token_ids(directory, has_encoder=manifest.encoder is not None)
            manifest.signature = replace(manifest.signature, **token_ids)
            self.stages.stage("verify")
            for path in paths:
                ties = ties_of_file(manifest.ties, path.name)
                verify_ties(ir.load(path), ties, where=f"the file {path.name}")
            is_quantized = bool(manifest.quantization)
            agreement, *others = [
                self._measure(task, directory, run, dtype, is_quantized=is_quantized)
                for run in self.references
            ]
            for entry, other in zip(manifest.adapters.values(), others, strict=True):
                entry["logit_error"] = other.relative
            columns = None
            if task.name == IMAGE_LM:
                columns = write_embedding_graphs(directory)
            elif manifest.encoder is not None:
                write_merged(directory)
            write_genai_config(directory, config, task, manifest.signature, columns)
            manifest.accuracy = {"against": "torch fp32", **agreement.to_dict()}
            self.stages.stage("hash")
            write_manifest(directory, manifest)
        self.stages.finish()
        bundle = open_bundle(self.output)
        return ExportReport(
            bundle=bundle,
            seconds=dict(self.stages.seconds),
            passes=passes,
            agreement=agreement,
            weights_bytes=sum(path.stat().st_size for path in bundle.data_files),
            unique_parameter_bytes=manifest.unique_parameters * np.dtype(dtype).itemsize,
            peak_bytes=read_memory().peak,
        )

    def _write(
        self, plan: TracePlan, failures: list[str], directory: Path
    ) -> tuple[list[Path], Task, Manifest, list[PassReport]]:
        """Trace, optimize and write; later steps do not need the module."""
        source = self.get_source()
        parameters = tied_parameters(source.module)
        if self.options.precision == "fp16":
            _halve(source.module)
        traced = trace(source, plan, last_only=self.options.last_only, progress=self.stages)
        models, task = traced.models, traced.task
        self.stages.stage("passes")
        quantized = with_tied_names(source.quantized, parameters)
        fused = self.options.fused
        passes = optimize(models, task, parameters, fused=fused, quantized=quantized)
        adapters = self._add_adapters(models, directory)
        skipped = [text for report in passes for text in report.skipped]
        unfused = [*partial_ties(source.module), *traced.unfused, *failures, *skipped]
        manifest = Manifest(
            source={
                "kind": source.kind,
                "name": source.name,
                "architecture": source.architecture,
                "unused": list(source.unused),
            },
            task=task.name,
            precision=self.options.precision,
            signature=_signature(models, task),
            encoder=_encoder_signature(models),
            ties=[],
            unique_parameters=sum(weight.numel() for weight in source.module.parameters()),
            versions={package: version(package) for package in _PACKAGES},
            fusion={"operators": _count_operators(models), "unfused": unfused},
            adapters=adapters,
        )
        same = share_across(models)
        if quantized:
            kept = keep_quantized(models, quantized, same)
            same = kept.same
            manifest.precision, manifest.signature = f"int{kept.bits}", _signature(models, task)
            manifest.quantization = {
                "scheme": CHECKPOINT,
                "types": kept.types,
                "blocks": kept.blocks,
                "folded": True,
            }
        self.stages.stage("write")
        paths = write_models(models, directory, data=DATA, same=same, progress=self.stages)
        manifest.ties = find_shared_ties(models, parameters)
        return paths, task, manifest, passes

    def _add_adapters(self, models: Mapping[str, ir.Model], directory: Path) -> dict[str, Any]:
        """Add the inputs of adapters and write their files; returns the manifest's entries."""
        if not self.adapters.by_name:
            return {}
        (model,) = models.values()
        step = AddAdapterInputs(self.adapters.widths, self.adapters.changed)
        run_passes(model, [], [step])
        return self.adapters.write(directory, step.products)

    def _measure(
        self,
        task: Task,
        directory: Path,
        reference: ReferenceRun,
        dtype: type[Any],
        *,
        is_quantized: bool,
    ) -> Agreement:
        try:
            agreement = task.compare(directory, reference, dtype)
        except ExportError as error:
            raise DisagreementError(str(error)) from error
        limit = 2e-2 if self.options.precision == "fp16" or is_quantized else 1e-3
        if is_quantized and find_provider(AUTO).name != OWN:
            limit = 1e-1  # ONNX Runtime rounds activations to 8 bits
        if not agreement.relative <= limit:
            raise DisagreementError(
                f"the exported model's logits{_describe(reference)} differ from torch's by "
                f"{agreement.relative:.1e} of the largest logit (prefill {agreement.prefill:.1e}, "
                f"cached {agreement.cached:.1e}, padded {agreement.padded:.1e})"
            )
        return agreement


def _describe(reference: ReferenceRun) -> str:
    return "" if reference.adapter is None else f" with adapter {reference.adapter}"


def _halve(module: torch.nn.Module) -> None:
    """Convert weights and tables in buffers to fp16, but not vectors such as rotary frequencies."""
    tables = (each for each in module.buffers() if each.dtype == torch.float32 and each.ndim > 1)
    for tensor in (*module.parameters(), *tables):
        tensor.data = tensor.data.half()


def _signature(models: Mapping[str, ir.Model], task: Task) -> Signature:
    graph = list(models.values())[-1].graph
    fused = sum(1 for node in graph if node.op_type == "GroupQueryAttention")
    last = any(node.name == LAST_TOKEN_NODE for node in graph)
    # without GroupQueryAttention, which moves valid tokens together, padding between tokens would
    # count in their distance
    moves = bool(task.cache) and fused == task.cached_attentions
    pads_both = moves or task.name not in ("causal-lm", AUDIO_LM, IMAGE_LM)
    return Signature(
        inputs=describe_tensors(graph.inputs),
        outputs=describe_tensors(graph.outputs),
        logits="last" if last else "all",
        cache_in_place=moves and bool(fused),
        max_positions=task.max_positions,
        padding="both" if pads_both else "left",
        vocab_size=task.vocab_size,
        audio_token_id=task.audio_token_id,
        image_token_id=task.image_token_id,
        image_tokens=task.image_tokens,
    )


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
