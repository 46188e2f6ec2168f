"""Quantize a bundle or an ``.onnx`` file to a bundle."""

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from threadpoolctl import threadpool_limits

from edgetie.bundle.atomic import atomic_directory, check_destination
from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.bundle.embedding_graphs import write_embedding_graphs
from edgetie.bundle.manifest import Manifest, write_manifest
from edgetie.bundle.merged_decoder import write_merged
from edgetie.bundle.names import DATA, IMAGE_LM
from edgetie.errors import QuantizeError
from edgetie.graph.model_files import write_models
from edgetie.harness.accuracy.thresholds import Thresholds
from edgetie.passes.base import run_passes
from edgetie.passes.merge_near_duplicates import NearCopy, check_max_distance
from edgetie.progress import Stages
from edgetie.quantize.calibration.calibration_data import read_calibration_data
from edgetie.quantize.calibration.layerwise_run import CalibrationInput
from edgetie.quantize.formats.scheme_formats import oldest_opset
from edgetie.quantize.kv_cache_int8 import QuantizeKvCache, kv_cache_scales
from edgetie.quantize.mixed_precision.accuracy_meter import AccuracyMeter
from edgetie.quantize.mixed_precision.candidates import FLOAT, HIGHER_PRECISION, QUANTIZED
from edgetie.quantize.mixed_precision.search import (
    SearchSummary,
    limit_error,
    quantize_within_limits,
)
from edgetie.quantize.mixed_precision.sensitivity import Cost
from edgetie.quantize.model_quantizer import ModelQuantizer
from edgetie.quantize.preprocess.adapter_inputs import write_matrices
from edgetie.quantize.quantized_bundle import (
    QuantizationResult,
    copy_other_files,
    describe_preprocessing,
    make_manifest,
    verify_tied_weights,
)
from edgetie.quantize.smaller_scheme import SmallerScheme, find_smaller_scheme
from edgetie.quantize.source_models import read_source_models
from edgetie.quantize.weights.array_spill import ArraySpill
from edgetie.targets import CALIBRATORS, find_scheme


@dataclass(frozen=True)
class QuantizeReport:
    """What was quantized.

    Attributes:
        bundle: the quantized bundle, opened.
        source_bytes: size of the source's files.
        float_weights: weights that stayed in floating point, and why.
        dequantized: quantized weights that nodes read as a whole, dequantized in each run, and the
            operators of these nodes.
        near: copies that are nearly equal to an embedding table, whether merged or not.
        merged_near: names of those that were merged.
        float_bytes: bytes of the weights that stayed in floating point.
        float_share: their share of all weights' bytes before.
        costs: what quantizing each weight costs, if limits required measuring it.
        search: how the search for a form within the limits went, if the scheme alone breaks them.
        smaller_scheme: another scheme, if it keeps the limits in fewer bytes.
        seconds: duration of each stage.
    """

    bundle: Bundle
    source_bytes: int
    float_weights: tuple[str, ...]
    dequantized: dict[str, str]
    near: tuple[NearCopy, ...]
    merged_near: tuple[str, ...]
    float_bytes: int
    float_share: float
    costs: tuple[Cost, ...]
    search: SearchSummary | None
    smaller_scheme: SmallerScheme | None
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
    calibration: str | Path | Sequence[Mapping[str, Any]] | None = None,
    calibrator: str = "percentile",
    int8_kv_cache: bool = False,
    limits: Thresholds | None = None,
    time_budget: float | None = None,
    require_tied_int8: bool = False,
    max_distance: float = 0.0,
    force: bool = False,
    progress: Stages | None = None,
) -> QuantizeReport:
    """Quantize all weights. A tied weight stays one initializer.

    Operators between a weight and its uses move to the other side of these uses. If one cannot
    move, the use gets the weight dequantized as a whole in each run.

    A short run over a text, and over synthetic audio if the model reads audio, shows which channels
    of activations have outliers. These are moved into the weights, and activations that
    quantization would hurt most are rotated.

    Args:
        source: a bundle or an ``.onnx`` file in fp32.
        output: directory to write; complete or not at all.
        target: where it will run: a name of :data:`~edgetie.targets.TARGETS`, which chooses the
            scheme.
        scheme: a name of :data:`~edgetie.targets.SCHEMES`, instead of the target's.
        block_size: number of weights that share a scale, 16, 32 or 64, if the scheme has blocks.
            Smaller blocks are more accurate and make larger files.
        calibration: a text similar to those the model will read, or a :class:`~pathlib.Path` of a
            text file or an ``.npz`` file of inputs, or these inputs, one dict for each run. By
            default a built-in text, or random tokens if there is no tokenizer.
        calibrator: how static ranges of activations are found
            (:func:`~edgetie.quantize.calibration.activation_ranges.find_activation_ranges`).
        int8_kv_cache: store the KV cache in int8, if attention is GroupQueryAttention.
        limits: accuracy limits, measured against the float model on what follows the first 1,024
            tokens of the text. If the scheme breaks them, the weights that cost most for their size
            get a higher precision, if the scheme has one (8 bits for 4, smaller blocks), or stay in
            floating point. A tied embedding is always quantized. No more text is read than tells
            with 99 % confidence whether the limits hold.
        time_budget: seconds after which no further form is tried: the smallest so far that keeps
            the limits is written, and so it is if the search is interrupted (Ctrl-C). One such form
            is looked for in any case.
        require_tied_int8: refuse a model if a tied weight stays in floating point, or if a use gets
            it dequantized as a whole.
        max_distance: merge copies up to this relative distance from an embedding table (Frobenius
            norm of the difference over that of the table), at most 0.1. A copy that is the table
            rounded to 16 bits is refused if it is not merged.
        force: replace an existing bundle.
        progress: told about each stage.

    Raises:
        BundleError: if the source cannot be read, ``output`` exists or the disk is full.
        QuantizeError: if there is no such scheme, the model is quantized already, the calibration
            data do not fit, a weight holds NaN or infinity, or ``require_tied_int8`` is broken.
        LimitError: if the limits cannot be kept.
        EdgetieError: if there is no such target, or ``max_distance`` is out of range.
    """
    scheme_row = find_scheme(target, scheme=scheme, block_size=block_size)
    _check_options(calibrator, max_distance)
    deadline = _deadline(time_budget, limits)
    check_destination(output, force=force)
    stages = progress or Stages()
    stages.stage("read")
    float_models = read_source_models(
        source, max_distance=max_distance, opset=oldest_opset(scheme_row)
    )
    bundle = float_models.bundle
    data = read_calibration_data(
        bundle, float_models.models, calibration, for_limits=limits is not None
    )
    # each thread quantizes a weight of its own, so BLAS needs none
    with threadpool_limits(1, user_api="blas"), atomic_directory(output, force=force) as directory:
        stages.stage("calibrate")
        quantizer = ModelQuantizer(
            scheme_row, bundle, float_models.models, float_models.ties, float_models.shared
        )
        with _verified_meanwhile(bundle, hashes=not isinstance(source, Bundle)):
            quantizer.preprocess(data.inputs, ArraySpill(directory), calibrator)
        stages.stage("quantize")
        meter = AccuracyMeter(bundle, data.text, limits) if limits is not None else None
        result = _quantize(quantizer, directory, meter, stages, deadline)
        if meter is not None and result.is_larger_than_8_bits and time.perf_counter() < deadline:
            stages.stage("try 8 bits")
            smaller = find_smaller_scheme(
                scheme_row, bundle, data.inputs, meter, directory, max_distance=max_distance
            )
            result = replace(result, smaller_scheme=smaller)
        if int8_kv_cache:
            result = _quantize_kv_cache(result, bundle, directory, data.inputs, meter)
        ties = verify_tied_weights(result, float_models, directory, require_int8=require_tied_int8)
        copy_other_files(bundle, directory)
        write_matrices(float_models.models, result.models, bundle, directory)
        if bundle.task == IMAGE_LM:
            write_embedding_graphs(directory)
        # ONNX Runtime does not accept DequantizeLinear over weights of an outer graph
        elif not int8_kv_cache and len(result.models) > 1 and not scheme_row.activation_bits:
            write_merged(directory)
        stages.stage("hash")
        preprocessing = describe_preprocessing(quantizer.reports, data.description)
        manifest = make_manifest(float_models, scheme_row, result, ties, preprocessing)
        manifest.quantization["cache_bits"] = 8 if int8_kv_cache else None
        write_manifest(directory, manifest)
    stages.finish()
    return QuantizeReport(
        open_bundle(output),
        float_models.file_bytes,
        tuple(result.float_weights),
        result.quantized.dequantized,
        float_models.near,
        float_models.merged_near,
        result.quantized.float_bytes,
        result.quantized.float_share,
        tuple(result.costs),
        result.search,
        result.smaller_scheme,
        dict(stages.seconds),
    )


def _check_options(calibrator: str, max_distance: float) -> None:
    if calibrator not in CALIBRATORS:
        methods = ", ".join(CALIBRATORS)
        raise QuantizeError(f"not one of {methods}", parameter="calibrator", value=calibrator)
    check_max_distance(max_distance)


def _deadline(time_budget: float | None, limits: Thresholds | None) -> float:
    """Return the end of the time budget on the clock of :func:`time.perf_counter`."""
    if time_budget is None:
        return math.inf
    if not time_budget > 0:
        raise QuantizeError("must be above 0", parameter="time_budget", value=time_budget)
    if limits is None:
        raise QuantizeError(
            "only a search for a form within accuracy limits takes long; give limits or leave it "
            "out",
            parameter="time_budget",
        )
    return time.perf_counter() + time_budget


@contextmanager
def _verified_meanwhile(bundle: Bundle, *, hashes: bool) -> Iterator[None]:
    """Verify a bundle's files in another thread. Their damage explains any other error."""
    with ThreadPoolExecutor(1) as background:
        verified = background.submit(bundle.verify_files, hashes=hashes)
        try:
            yield
        finally:
            verified.result()


def _quantize(
    quantizer: ModelQuantizer,
    directory: Path,
    meter: AccuracyMeter | None,
    stages: Stages,
    deadline: float,
) -> QuantizationResult:
    """Quantize the models within limits and write them."""
    if meter is None:
        models = quantizer.quantize()
        write_models(models.models, directory, data=DATA, same=models.same, progress=stages)
        return QuantizationResult(models)
    searched = quantize_within_limits(quantizer, directory, meter, stages, deadline)
    models = searched.models
    stages.stage("write")
    write_models(models.models, directory, data=DATA, same={}, progress=stages)
    for name in (QUANTIZED, HIGHER_PRECISION, FLOAT):
        (directory / name).unlink(missing_ok=True)
    return QuantizationResult(models, searched.costs, searched.metrics, searched.summary)


def _quantize_kv_cache(
    result: QuantizationResult,
    bundle: Bundle,
    directory: Path,
    inputs: CalibrationInput,
    meter: AccuracyMeter | None,
) -> QuantizationResult:
    """Quantize the KV cache of the last model, the decoder, and check limits again."""
    *_, (file, model) = result.models.items()
    written = Bundle(directory, directory / file, bundle.manifest)
    scales = kv_cache_scales(written, model, directory / file, inputs)
    run_passes(model, [], [QuantizeKvCache(scales)])
    ir.save(model, directory / file)
    if meter is None:
        return result
    metrics = meter.measure(written).metrics
    if meter.limits.failures(metrics):
        remedy = "allow more or leave the KV cache in floating point"
        raise limit_error(meter.limits, metrics, "with a KV cache of int8", remedy)
    return replace(result, metrics=metrics)
