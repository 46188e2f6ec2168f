"""``export``: a source becomes a bundle."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import onnx_ir as ir

from edgetie.atomic import atomic_directory, check_destination
from edgetie.bundle import (
    DATA,
    Bundle,
    Manifest,
    Signature,
    describe,
    eos_token_ids,
    open_bundle,
    write_manifest,
)
from edgetie.errors import ExportError, TieError
from edgetie.export.genai import write_genai_config
from edgetie.export.memory import release_freed_memory
from edgetie.export.tasks import Task, probe
from edgetie.export.trace import trace
from edgetie.export.verify import Agreement, expect, measure
from edgetie.external_data import write_model
from edgetie.passes import PassReport, run_passes
from edgetie.passes.activation import Activation
from edgetie.passes.head import Head
from edgetie.passes.last_token import LastToken
from edgetie.passes.layout import Layout
from edgetie.passes.linear import Linear
from edgetie.passes.normalize import Normalize
from edgetie.passes.pack import PackProjections
from edgetie.passes.retie import Retie
from edgetie.passes.rms_norm import RmsNorm
from edgetie.passes.rotary import Rotary
from edgetie.passes.skip_norm import SkipNorm
from edgetie.report.progress import Stages
from edgetie.runtime.memory import read_memory
from edgetie.sources import Source, load_source
from edgetie.ties import TieGroup, find_ties, tied_parameters, verify_ties

_FUSED_OPERATORS = (
    "GroupQueryAttention",
    "SkipSimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "RMSNormalization",
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
        assert self.bundle.manifest is not None
        return self.bundle.manifest


def export(
    source: str | Source,
    output: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    logits: str = "last",
    force: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    progress: Stages | None = None,
) -> ExportReport:
    """Export a causal language model to an ONNX bundle, its tied weights kept as one.

    Args:
        source: what :func:`edgetie.sources.load_source` takes, or an already loaded source.
        output: directory to write; complete or not at all.
        precision: ``fp32`` or ``fp16`` (for GPUs: ONNX Runtime's CPU kernels would copy the
            weights to fp32).
        logits: ``last``, of each row's last token, or ``all``.
        force: replace an existing bundle.
        trust_remote_code: allow a model directory to run code of its own.
        allow_pickle: allow pickled weights.
        progress: told about each stage.

    Raises:
        SourceError: if the source is no model.
        ExportError: if torch or ONNX Runtime cannot handle it, or its logits are wrong.
        TieError: if a pass parted a tied weight.
        BundleError: if ``output`` is in the way or the disk is full.
    """
    check_destination(output, force=force)
    stages = progress or Stages()
    if isinstance(source, str):
        stages.stage("load")
        source = load_source(source, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    stages.stage("probe")
    task = probe_source(source)
    expected = expect(source.module, task)
    if not np.isfinite(expected.logits).all():
        raise ExportError(
            f"{source.name}: its logits in torch are NaN or infinite, so it cannot be verified; "
            "look for NaN in its weights"
        )
    parameters = tied_parameters(source.module)
    count = sum(parameter.numel() for parameter in source.module.parameters())
    if precision == "fp16":
        for parameter in source.module.parameters():
            parameter.data = parameter.data.half()
    traced = trace(source, task, last_only=logits == "last", progress=stages)
    stages.stage("passes")
    passes = optimize(traced.model, task, parameters)
    unfused = [*traced.unfused, *(text for report in passes for text in report.skipped)]
    manifest = Manifest(
        source={"kind": source.kind, "name": source.name, "architecture": source.architecture},
        task="causal-lm",
        precision=precision,
        signature=_signature(traced.model, task, logits),
        ties=[],
        unique_parameters=count,
        versions={package: version(package) for package in _VERSIONED},
        fusion={"operators": _count_operators(traced.model), "unfused": unfused},
    )
    name, config, save_extras = source.name, source.config, source.save_extras
    with atomic_directory(output, force=force) as directory:
        stages.stage("write")
        path = write_model(traced.model, directory, progress=stages)
        manifest.ties = find_ties(traced.model, parameters)
        del source, traced  # the module's weights are not needed beside the file's
        release_freed_memory()
        save_extras(directory)
        manifest.signature.eos_token_ids = eos_token_ids(directory)
        write_genai_config(directory, config, task, manifest.signature)
        stages.stage("verify")
        verify_ties(ir.load(path), manifest.ties, where=f"the file {path.name}")
        dtype = np.float16 if precision == "fp16" else np.float32
        agreement = measure(path, task, expected, dtype)
        _require_agreement(name, agreement, precision)
        manifest.accuracy = {"against": "torch fp32", **agreement.to_dict()}
        stages.stage("hash")
        write_manifest(directory, manifest)
    stages.finish()
    bundle = open_bundle(output)
    return ExportReport(
        bundle=bundle,
        seconds=dict(stages.seconds),
        passes=passes,
        agreement=agreement,
        weights_bytes=(bundle.directory / DATA).stat().st_size,
        unique_parameter_bytes=count * np.dtype(dtype).itemsize,
        peak_bytes=read_memory().peak,
    )


def optimize(model: ir.Model, task: Task, parameters: list[tuple[str, ...]]) -> list[PassReport]:
    """Run the graph passes on a traced model, in place; its ties hold after each.

    Args:
        model: as :func:`edgetie.export.trace.trace` returns it.
        task: for the longest sequence, which sizes the rotary tables.
        parameters: names of tied parameters, group by group.

    Raises:
        TieError: naming the pass that parted a weight.
    """
    reports = run_passes(model, [], [Normalize(), Retie()])
    ties = find_ties(model, parameters)
    _require_module_ties(parameters, ties)
    fusions = [
        Linear(),
        RmsNorm(),
        Rotary(task.max_positions),
        Layout(),
        LastToken(),
        SkipNorm(),
        Activation(),
        PackProjections(),
        Head(),
        Normalize(fold=False),
    ]
    return reports + run_passes(model, ties, fusions)


def _signature(model: ir.Model, task: Task, logits: str) -> Signature:
    fused = sum(1 for node in model.graph if node.op_type == "GroupQueryAttention")
    return Signature(
        inputs=describe(model.graph.inputs),
        outputs=describe(model.graph.outputs),
        logits=logits,
        cache_in_place=bool(task.layers) and fused == len(task.layers),
        max_positions=task.max_positions,
        vocab_size=task.vocab_size,
    )


def probe_source(source: Source) -> Task:
    """Run the model once; an error in it is the source's, not ours."""
    try:
        return probe(source.module, source.config)
    except Exception as error:
        raise ExportError(
            f"{source.name}: calling it with three tokens failed "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error


def _require_module_ties(parameters: list[tuple[str, ...]], ties: list[TieGroup]) -> None:
    """Every parameter tied in torch must be one initializer right after the trace."""
    found = {name for group in ties for name in group.parameters}
    for names in parameters:
        if not set(names) & found:
            raise TieError(
                f"torch.onnx: {' = '.join(names)} is one parameter in torch, but no shared "
                "initializer in the exported graph"
            )


def _count_operators(model: ir.Model) -> dict[str, int]:
    counts = dict.fromkeys(_FUSED_OPERATORS, 0)
    for node in model.graph:
        if node.op_type in counts:
            counts[node.op_type] += 1
    rotary = sum(1 for node in model.graph if "do_rotary" in node.attributes)
    return {
        **{name: count for name, count in counts.items() if count},
        "rotary inside attention": rotary,
        "nodes": len(model.graph),
    }


def _require_agreement(name: str, agreement: Agreement, precision: str) -> None:
    limit = 5e-2 if precision == "fp16" else 1e-3
    if not agreement.relative <= limit:
        raise ExportError(
            f"{name}: the exported model's logits differ from torch's by "
            f"{agreement.relative:.1e} of the largest logit (prefill {agreement.prefill:.1e}, "
            f"cached {agreement.cached:.1e}, padded {agreement.padded:.1e}); nothing was written"
        )
