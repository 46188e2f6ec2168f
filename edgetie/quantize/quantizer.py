"""``quantize``: a bundle or an ``.onnx`` file becomes a quantized bundle."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common
from threadpoolctl import threadpool_limits

from edgetie.bundle.atomic import atomic_directory, check_destination
from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.bundle.manifest import Manifest, describe_tensors, write_manifest
from edgetie.bundle.merged_decoder import write_merged
from edgetie.bundle.names import CONFIGURATIONS, DATA, MANIFEST, MODEL
from edgetie.errors import QuantizeError
from edgetie.graph.external_data import byte_range
from edgetie.graph.model_files import load_model, remove_weights_from_inputs, write_models
from edgetie.graph.operators import operator
from edgetie.harness.accuracy.metrics import PredictionMetrics
from edgetie.harness.accuracy.thresholds import Thresholds
from edgetie.passes.run import run_passes
from edgetie.progress import Stages
from edgetie.quantize.calibration.activations import Text, calibration_text
from edgetie.quantize.calibration.layerwise_run import Feeds, Input, is_bidirectional
from edgetie.quantize.calibration.synthetic_audio import calibration_audio
from edgetie.quantize.kv_cache_int8 import QuantizeKvCache, kv_cache_scales
from edgetie.quantize.mixed_precision.candidates import FLOAT, HIGHER_PRECISION, QUANTIZED
from edgetie.quantize.mixed_precision.sensitivity import Cost, Meter, fit, require_kept
from edgetie.quantize.model_quantizer import ModelQuantizer
from edgetie.quantize.weights.array_spill import ArraySpill
from edgetie.runtime.text.tokenizer import TOKENIZER_FILES
from edgetie.targets import CALIBRATORS, find_scheme
from edgetie.ties.groups import (
    equal_initializers,
    find_shared_ties,
    find_ties,
    ties_of_file,
    verify_ties,
)

_QUANTIZED = {
    "MatMulNBits", "GatherBlockQuantized", "MatMulInteger", "DynamicQuantizeLinear",
    "QLinearMatMul", "DequantizeLinear", "QGemm", "QAttention",
}  # fmt: skip


@dataclass(frozen=True)
class QuantizeReport:
    """What was quantized.

    Attributes:
        bundle: the int8 bundle, opened.
        source_bytes: size of the files it was made from.
        kept: matrices that stayed in floating point, and why.
        costs: what rounding each product costs, if limits made it matter.
        seconds: where the time went.
    """

    bundle: Bundle
    source_bytes: int
    kept: tuple[str, ...]
    costs: tuple[Cost, ...]
    seconds: dict[str, float]

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest


def quantize_model(
    source: str | os.PathLike[str] | Bundle,
    output: str | os.PathLike[str],
    *,
    target: str = "cpu",
    scheme: str | None = None,
    block_size: int | None = None,
    calibration: str | Sequence[Mapping[str, Any]] | None = None,
    calibrator: str = "percentile",
    int8_kv_cache: bool = False,
    limits: Thresholds | None = None,
    force: bool = False,
    progress: Stages | None = None,
) -> QuantizeReport:
    """Quantize all matrices, the tied table first; it stays one initializer.

    A short run over a text, and over synthetic sounds where the model hears, shows which channels
    of activations stand out. They are moved into the weights, the inputs of products that rounding
    would hurt most are rotated.

    Args:
        source: a bundle or an ``.onnx`` file in fp32.
        output: directory to write; complete or not at all.
        target: where it will run: a name of :data:`~edgetie.targets.TARGETS`, which
            chooses the scheme.
        scheme: a name of :data:`~edgetie.targets.SCHEMES`, instead of the target's.
        block_size: columns that share a scale: 16, 32 or 64, where the scheme has blocks; smaller
            where that pads less. Smaller blocks are closer and make larger files.
        calibration: a text like those the model will read; a built-in one by default, and
            random tokens where there is no tokenizer. Or the model's inputs themselves, run by run
            (:func:`~edgetie.quantize.calibration.activations.read_feeds`).
        calibrator: how ranges of activations are found where they are fixed beforehand
            (:func:`~edgetie.quantize.calibration.activation_ranges.find_activation_ranges`).
        int8_kv_cache: store the KV cache in int8, if attention is GroupQueryAttention.
        limits: what must hold against the float model on what follows the first 1,024 tokens of
            the text. Where rounding everything breaks them, the weights that cost most for their
            size take a finer form, if the scheme has one (8 bits for 4, smaller blocks), or stay in
            floating point; the tied table never does.
        force: replace an existing bundle.
        progress: told about each stage.

    Raises:
        BundleError: if the source cannot be read, ``output`` is in the way or the disk is full.
        QuantizeError: if there is no such scheme, the model is quantized already, or a weight holds
            NaN or infinity.
        LimitError: if the limits cannot be kept.
    """
    row = find_scheme(target, scheme=scheme, block_size=block_size)
    if calibrator not in CALIBRATORS:
        methods = ", ".join(CALIBRATORS)
        raise QuantizeError(f"not one of {methods}", parameter="calibrator", value=calibrator)
    check_destination(output, force=force)
    stages = progress or Stages()
    stages.stage("read")
    bundle = source if isinstance(source, Bundle) else open_bundle(source)
    source_bytes = bundle.file_bytes  # of what may lie where the output will
    if bundle.has_fixed_shapes:
        raise QuantizeError(f"{bundle.directory}: has fixed shapes; quantize first, then fix them")
    models = {path.name: load_model(path) for path in bundle.model_paths}
    for model in models.values():
        _require_float(bundle, model)
        remove_weights_from_inputs(model)
        if bundle.is_bare:
            _infer_shapes(model)
    parameters = [tuple(group.parameters) for group in find_known_ties(bundle)]
    before = find_shared_ties(models, parameters)
    if calibration is None or isinstance(calibration, str):
        text = calibration_text(bundle, calibration, models.values())
        runs: list[Feeds] = []
    else:
        text, runs = Text([], [], "own inputs"), [dict(feeds) for feeds in calibration]
        if not runs:
            raise QuantizeError("calibration: no inputs; give some, or None for the built-in text")
    if limits is not None and runs:
        raise QuantizeError("limits are held against a text; calibrate on one, not on own inputs")
    if limits is not None and not text.rest:
        raise QuantizeError(
            f"the calibration text has {len(text.calibrated)} tokens, all of them calibrated on, "
            "and limits are held against what follows; give a longer one"
        )
    ties = {file: find_ties(model, parameters) for file, model in _named(models).items()}
    for path, model, groups in zip(bundle.model_paths, models.values(), ties.values(), strict=True):
        _require_once(path, model, [group.name for group in groups])
    costs: list[Cost] = []
    measured: PredictionMetrics | None = None
    # threads share out matrices: BLAS needs none of its own
    with threadpool_limits(1, user_api="blas"), atomic_directory(output, force=force) as directory:
        stages.stage("calibrate")
        clips, audio_embeddings = calibration_audio(bundle)
        given = Input(text.calibrated, clips, runs, text.prefix, text.suffix)
        with ThreadPoolExecutor(1) as beside:
            verified = beside.submit(bundle.verify_files, hashes=bundle is not source)
            try:
                rounding = ModelQuantizer(
                    row,
                    bundle,
                    _named(models),
                    ties,
                    given,
                    ArraySpill(directory),
                    shared=_shared_names(models),
                    calibrator=calibrator,
                )
            finally:
                verified.result()  # damaged weights explain whatever went wrong
        stages.stage("quantize")
        if limits is None:
            made = rounding.apply()
            paths = write_models(
                made.models,
                directory,
                data=DATA,
                same=made.same,
                progress=stages,
            )
        else:
            meter = Meter(bundle, text)
            made, costs, measured = fit(limits, rounding, directory, meter, stages)
            stages.stage("write")
            paths = write_models(made.models, directory, data=DATA, same={}, progress=stages)
            for name in (QUANTIZED, HIGHER_PRECISION, FLOAT):
                (directory / name).unlink(missing_ok=True)
        if int8_kv_cache:
            written = _quantize_cache(bundle, made.models, directory, given)
            if limits is not None:
                measured = meter.whole(written)
                remedy = "allow more or leave the KV cache in floating point"
                require_kept(limits, measured, "with a KV cache of int8", remedy)
        after = find_shared_ties(made.models, parameters)
        _require_kept(before, after)
        for path in paths:
            verify_ties(
                load_model(path), ties_of_file(after, path.name), where=f"the file {path.name}"
            )
        _copy_extras(bundle, directory)
        # ONNX Runtime does not take DequantizeLinear over weights of an outer graph
        if not int8_kv_cache and len(made.models) > 1 and not row.activation_bits:
            write_merged(directory)
        stages.stage("hash")
        kept = [*made.skipped, *(_costly(cost) for cost in costs if cost.kept)]
        manifest = _manifest(bundle, made.models)
        *_, last = made.models.values()
        manifest.signature = replace(
            manifest.signature,
            inputs=describe_tensors(last.graph.inputs),
            outputs=describe_tensors(last.graph.outputs),
        )
        manifest.ties, manifest.accuracy = after, {}
        manifest.precision, manifest.weights_in_memory = row.precision, row.weights_in_memory
        manifest.quantization = {
            "scheme": row.name,
            "blocks": made.blocks,
            "calibration": rounding.note or _calibrated_on(text, audio_embeddings, len(runs)),
            "smoothed": rounding.smoothed,
            "rotated": rounding.rotated,
            "compensated": rounding.gptq_quantize,
            "massive": rounding.massive,
            "kept": kept,
            "finer": [_costly(cost) for cost in costs if cost.higher_precision],
            "cache_bits": 8 if int8_kv_cache else None,
            "measured": _found(measured),
        }
        write_manifest(directory, manifest)
    stages.finish()
    return QuantizeReport(
        open_bundle(output),
        source_bytes,
        tuple(kept),
        tuple(costs),
        dict(stages.seconds),
    )


def _infer_shapes(model: ir.Model) -> None:
    """Add shapes that other exporters leave out, where they can be told."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # a graph whose shapes cannot be told stays as it is
    try:
        ir.passes.common.ShapeInferencePass()(model)
    finally:
        logging.disable(level)


def _named(models: Mapping[str, ir.Model]) -> dict[str, ir.Model]:
    """Models by the file names of a bundle."""
    return dict(zip([MODEL] if len(models) == 1 else models, models.values(), strict=True))


def _quantize_cache(
    bundle: Bundle, models: Mapping[str, ir.Model], directory: Path, given: Input
) -> Bundle:
    """Give the last model, which has one, a cache of 8 bits; returns what is written."""
    *_, (file, model) = models.items()
    written = Bundle(directory, directory / file, bundle.manifest)
    scales = kv_cache_scales(written, model, directory / file, given)
    run_passes(model, [], [QuantizeKvCache(scales)])
    ir.save(model, directory / file)
    return written


def _costly(cost: Cost) -> str:
    return f"{cost.name}: costs {cost.kl:.1e}"


def _calibrated_on(text: Text, audio_embeddings: str, runs: int) -> str:
    if runs:
        return f"{runs} runs on {text.words}"
    return " and ".join(
        filter(None, [f"{len(text.calibrated)} tokens of {text.words}", audio_embeddings])
    )


def find_known_ties(bundle: Bundle) -> list[Any]:
    """The tie groups that a bundle's manifest names."""
    return list(bundle.manifest.ties)


def _shared_names(models: Mapping[str, ir.Model]) -> frozenset[str]:
    """Weights that several models read from the same bytes; they have one name."""
    count = Counter(
        (name, byte_range(value))
        for model in models.values()
        for name, value in model.graph.initializers.items()
        if byte_range(value) is not None
    )
    return frozenset(name for (name, _), number in count.items() if number > 1)


def _require_float(bundle: Bundle, model: ir.Model) -> None:
    """Refuse what is quantized, or half precision, already."""
    found = next((node for node in model.graph if operator(node) in _QUANTIZED), None)
    if found is not None:
        raise QuantizeError(
            f"{bundle.model_path}: is quantized already ({found.op_type} {found.name}); "
            "quantize the fp32 model it came from"
        )
    if bundle.manifest.precision not in ("", "fp32"):
        raise QuantizeError(
            f"{bundle.directory}: is {bundle.manifest.precision}; quantize an fp32 bundle"
        )


def _require_once(path: Path, model: ir.Model, tied: list[str]) -> None:
    """Refuse a model that stores a tied weight more than once."""
    for first, *others in equal_initializers(model, like=tied):
        raise QuantizeError(
            f"{path}: {first} is stored again as {', '.join(others)}; run edgetie tie first"
        )


def _found(errors: PredictionMetrics | None) -> dict[str, float]:
    """What limits were held against; nothing without."""
    if errors is None:
        return {}
    return {
        "positions": errors.predictions,
        "kl": errors.mean_kl_divergence,
        "perplexity_increase": errors.perplexity_increase,
        "top1_agreement": errors.top1_agreement,
    }


def _require_kept(before: list[Any], after: list[Any]) -> None:
    names = {group.name for group in after}
    lost = [group.name for group in before if group.name not in names]
    if lost:
        raise QuantizeError(f"{', '.join(lost)}: quantizing would part its uses; nothing written")


def _copy_extras(bundle: Bundle, directory: Path) -> None:
    """Configuration and tokenizer files, as they are; of a bare ONNX file those beside it."""
    if bundle.is_bare:
        files = [bundle.directory / name for name in (*TOKENIZER_FILES, *CONFIGURATIONS)]
    else:
        files = [f for f in bundle.files if f.suffix != ".onnx" and f.name not in (DATA, MANIFEST)]
    for path in files:
        if path.is_file():
            shutil.copyfile(path, directory / path.name)


def _manifest(bundle: Bundle, models: Mapping[str, ir.Model]) -> Manifest:
    """The source's manifest; for a bare ONNX file, with what can be read off its graph."""
    manifest = bundle.manifest
    if not bundle.is_bare:
        return replace(manifest)
    (model,) = models.values()
    shapes = {each.name: each.shape for each in describe_tensors(model.graph.outputs)}
    width = shapes["logits"][-1] if shapes.get("logits") else 0
    return replace(
        manifest,
        source={"kind": "onnx", "name": bundle.model_path.name, "architecture": None},
        task="masked-lm" if is_bidirectional(bundle.model_path) else "causal-lm",
        signature=replace(
            manifest.signature,
            vocab_size=width if isinstance(width, int) else 0,
        ),
        unique_parameters=_parameters(bundle),
        versions={name: version(name) for name in ("edgetie", "onnxruntime", "onnx")},
    )


def _parameters(bundle: Bundle) -> int:
    model = load_model(bundle.model_path)
    return sum(
        value.const_value.size
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT
    )
