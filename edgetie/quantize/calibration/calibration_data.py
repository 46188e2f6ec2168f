"""Read what to calibrate on: a text, a file, or the user's own inputs."""

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.names import IMAGE_LM, IMAGE_TO_TEXT
from edgetie.errors import QuantizeError
from edgetie.quantize.calibration.activations import (
    MAX_CHARACTERS,
    CalibrationText,
    calibration_text,
)
from edgetie.quantize.calibration.layerwise_run import CalibrationInput, Feeds
from edgetie.quantize.calibration.synthetic_audio import calibration_audio
from edgetie.quantize.calibration.synthetic_images import calibration_images


class CalibrationData(NamedTuple):
    """What to calibrate on and to measure limits on, and a description for the manifest."""

    text: CalibrationText
    inputs: CalibrationInput
    description: str


def read_calibration_data(
    bundle: Bundle,
    models: Mapping[str, ir.Model],
    source: str | Path | Sequence[Mapping[str, Any]] | None,
    *,
    for_limits: bool,
) -> CalibrationData:
    """Read and check calibration data.

    Args:
        bundle: the float bundle.
        models: its models.
        source: a text, a text file or an ``.npz`` file of inputs, these inputs, or ``None`` for the
            built-in text.
        for_limits: whether accuracy limits are measured on what follows in the text.

    Raises:
        BundleError: if the tokenizer cannot be read.
        QuantizeError: if a file cannot be read, or the data do not fit the model.
    """
    if isinstance(source, Path):
        source = read_calibration_file(source)
    elif isinstance(source, str) and os.path.isfile(source):  # noqa: PTH113 - any length
        raise QuantizeError(
            f"{source!r} is the name of a file, but is read as a text; pass a Path",
            parameter="calibration",
        )
    if source is not None and not isinstance(source, str):
        return _own_inputs([dict(feeds) for feeds in source], for_limits)
    text = calibration_text(bundle, source, models.values())
    if for_limits and not text.evaluation:
        raise QuantizeError(
            f"the calibration text has {len(text.calibration)} tokens, all of them calibrated on, "
            "and limits are measured on what follows; give a longer one"
        )
    has_images = bundle.task in (IMAGE_LM, IMAGE_TO_TEXT)
    media, description = (calibration_images if has_images else calibration_audio)(bundle)
    parts = [f"{len(text.calibration)} tokens of {text.description}", description]
    inputs = CalibrationInput(text.calibration, media, (), text.prefix, text.suffix)
    return CalibrationData(text, inputs, " and ".join(filter(None, parts)))


def _own_inputs(feeds: list[Feeds], for_limits: bool) -> CalibrationData:
    if not feeds:
        raise QuantizeError(
            "no inputs; give some, or None for the built-in text", parameter="calibration"
        )
    if for_limits:
        raise QuantizeError("limits are measured on a text; calibrate on one, not on inputs")
    description = f"{len(feeds)} runs on own inputs"
    text = CalibrationText([], [], description)
    return CalibrationData(text, CalibrationInput(feeds=feeds), description)


def read_calibration_file(path: Path) -> str | list[Feeds]:
    """Read a text file, or the inputs in an ``.npz`` file.

    Raises:
        QuantizeError: if it cannot be read.
    """
    if path.suffix == ".npz":
        return _read_feeds(path)
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_CHARACTERS)
    except (OSError, UnicodeDecodeError) as error:
        raise QuantizeError(
            f"not readable as UTF-8 text ({error})", parameter="calibration", value=str(path)
        ) from error


def _read_feeds(path: Path) -> list[Feeds]:
    """Read a model's inputs to calibrate on from an ``.npz`` file.

    Each array has the name of an input, and a first axis with one entry for each run.

    Raises:
        QuantizeError: if it is not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            stacked = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise QuantizeError(f"{path}: not a readable .npz file ({error})") from error
    lengths = {len(array) if array.ndim else 0 for array in stacked.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise QuantizeError(f"{path}: its arrays need a first axis with one entry for each run")
    return [{n: array[run] for n, array in stacked.items()} for run in range(lengths.pop())]
