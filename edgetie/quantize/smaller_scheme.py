"""Try whether 8 bits keep accuracy limits in fewer bytes than a mixture that starts from fewer."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.names import DATA
from edgetie.graph.model_files import write_models
from edgetie.quantize.calibration.layerwise_run import CalibrationInput
from edgetie.quantize.formats.scheme_formats import oldest_opset
from edgetie.quantize.mixed_precision.accuracy_meter import AccuracyMeter
from edgetie.quantize.model_quantizer import ModelQuantizer
from edgetie.quantize.source_models import read_source_models
from edgetie.quantize.weights.array_spill import ArraySpill
from edgetie.targets import CALIBRATORS, QUANTIZE_SCHEMES, Scheme

_FOLDER = "smaller_scheme"


@dataclass(frozen=True)
class SmallerScheme:
    """A scheme that keeps the limits too, and the bytes of its model files."""

    name: str
    file_bytes: int


def find_smaller_scheme(
    scheme: Scheme,
    bundle: Bundle,
    inputs: CalibrationInput,
    meter: AccuracyMeter,
    directory: Path,
    *,
    max_distance: float = 0.0,
) -> SmallerScheme | None:
    """Quantize with the scheme of 8 bits that is otherwise alike, and measure it.

    Args:
        scheme: how the models in ``directory`` were quantized.
        bundle: the float models.
        inputs: what to calibrate on.
        meter: measures a bundle.
        directory: the quantized models. A folder in it is used meanwhile.
        max_distance: as in :func:`~edgetie.quantize.source_models.read_source_models`.
    """
    alike = [
        row
        for row in QUANTIZE_SCHEMES.values()
        if row.linear_bits == 8 > scheme.linear_bits
        and (row.linear_format, row.float16) == (scheme.linear_format, scheme.float16)
    ]
    if not alike:
        return None
    other, size = alike[0], _file_bytes(directory)
    folder = directory / _FOLDER
    folder.mkdir()
    try:
        opset = oldest_opset(other)
        source = read_source_models(bundle, max_distance=max_distance, opset=opset)
        quantizer = ModelQuantizer(other, source.bundle, source.models, source.ties, source.shared)
        quantizer.preprocess(inputs, ArraySpill(folder), CALIBRATORS[0])
        quantized = quantizer.quantize()
        *_, path = write_models(quantized.models, folder, data=DATA, same=quantized.same)
        smaller = SmallerScheme(other.name, _file_bytes(folder))
        if smaller.file_bytes >= size:
            return None
        metrics = meter.measure(Bundle(folder, path, source.bundle.manifest)).metrics
        return None if meter.limits.failures(metrics) else smaller
    finally:
        shutil.rmtree(folder)


def _file_bytes(directory: Path) -> int:
    """Count the bytes of model files and their data."""
    files = [*directory.glob("*.onnx"), directory / DATA]
    return sum(file.stat().st_size for file in files if file.is_file())
